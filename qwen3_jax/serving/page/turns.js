/**
 * One turn of the conversation on the screen.
 *
 * Invariant: a turn is plain data (it goes to the session's storage as it is), and its element shows that data after
 * each `show()`. Nothing here changes a turn but for what the user opens and types in it.
 *
 * A user's turn: {role, text, edited}, where `edited` is there as long as the text is being edited. An answer: {role,
 * text, thinking, state, finish, error, pieces, thoughts, usage, first, seconds, isOpen}, where state is "running",
 * "done", "stopped" or "failed", `pieces` and `thoughts` count deltas until there is a `usage`, and `first` and
 * `seconds` are from the request to the first token and from there to the last.
 */

import { Growing } from "./markdown.js";

export function newAnswer() {
  return { role: "assistant", text: "", thinking: "", state: "running", pieces: 0, thoughts: 0, isOpen: false };
}

/** An element for a turn; `actions` has copy(text, button), regenerate(), resend(text) and changed(). */
export function view(turn, actions) {
  const template = document.getElementById(`${turn.role}-turn`);
  const element = template.content.firstElementChild.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  find(".copy").addEventListener("click", ({ currentTarget }) => actions.copy(turn.text, currentTarget));
  const show = turn.role === "user" ? userView(turn, find, actions) : answerView(turn, find, actions);
  show();
  return { element, show };
}

/** Let a text field be as high as its text; the style sheet has the bounds. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function userView(turn, find, actions) {
  const form = find(".editing");
  const field = form.querySelector("textarea");
  const edit = (text) => {
    turn.edited = text; // kept, so that a reload loses no typing
    form.hidden = text === undefined;
    find(".said").hidden = find(".actions").hidden = !form.hidden;
    if (!form.hidden) field.value = text;
    actions.changed();
  };
  const open = () => {
    edit(turn.edited ?? turn.text);
    requestAnimationFrame(() => fit(field));
  };
  find(".edit").addEventListener("click", () => {
    open();
    field.focus();
  });
  find(".cancel").addEventListener("click", () => {
    edit(undefined);
    find(".edit").focus();
  });
  field.addEventListener("input", () => {
    fit(field);
    edit(field.value);
  });
  sendOnEnter(field, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    actions.resend(field.value);
  });
  return () => {
    find(".said").textContent = turn.text;
    if (turn.edited !== undefined) open();
  };
}

/** Enter sends, Shift+Enter is a new line, and Enter that ends the spelling of a word in an input method is neither. */
export function sendOnEnter(field, form) {
  field.addEventListener("keydown", (event) => {
    const isSpelling = event.isComposing || event.keyCode === 229; // Safari ends the spelling before the key
    if (event.key !== "Enter" || event.shiftKey || isSpelling) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

function answerView(turn, find, actions) {
  const details = find(".thinking");
  const thoughts = find(".thoughts");
  const thoughtText = thoughts.appendChild(document.createTextNode(""));
  const markdown = new Growing(find(".markdown"));
  details.open = turn.isOpen;
  details.addEventListener("toggle", () => {
    if (turn.isOpen === details.open) return;
    turn.isOpen = details.open;
    actions.changed();
  });
  find(".regenerate").addEventListener("click", actions.regenerate);
  find(".retry").addEventListener("click", actions.regenerate);

  return () => {
    const isRunning = turn.state === "running";
    const wasAtEnd = thoughts.scrollHeight - thoughts.scrollTop - thoughts.clientHeight < 24;
    thoughtText.appendData(turn.thinking.trimEnd().slice(thoughtText.length)); // blank lines wait for what follows
    if (wasAtEnd && isRunning) thoughts.scrollTop = thoughts.scrollHeight;
    details.hidden = !turn.thinking;
    find("summary").textContent = aboutThinking(turn);
    markdown.update(turn.text, isRunning);
    find(".waiting").hidden = !isRunning || Boolean(turn.text || turn.thinking);
    find(".remark").textContent = remarkOn(turn);
    find(".remark").hidden = !remarkOn(turn);
    find(".error").hidden = turn.state !== "failed";
    find(".error span").textContent = turn.error ?? "";
    find(".actions").hidden = isRunning;
    find(".copy").hidden = !turn.text;
    find(".regenerate").hidden = turn.state === "failed"; // there is Retry
    find(".statistics").textContent = statistics(turn);
  };
}

const count = (number, name) => `${number.toLocaleString("en")} ${name}${number === 1 ? "" : "s"}`;

function aboutThinking(turn) {
  const exact = turn.usage?.completion_tokens_details;
  const tokens = exact ? count(exact.reasoning_tokens, "token") : `about ${count(turn.thoughts, "token")}`;
  if (turn.state === "running" && !turn.text) return `Thinking… ${tokens}`;
  return `Thought for ${tokens}${exact?.forced_tokens > 0 ? ", stopped at the budget" : ""}`;
}

function remarkOn(turn) {
  if (turn.state === "stopped") return "Stopped.";
  if (turn.state !== "done") return "";
  if (turn.finish === "length") return "Cut off at the token limit.";
  if (turn.finish === "tool_calls") return "The model called a tool; this page has none.";
  return turn.text ? "" : "The answer is empty.";
}

function statistics(turn) {
  if (turn.first === undefined) return "";
  const tokens = turn.usage?.completion_tokens ?? turn.pieces;
  const parts = [`${turn.usage ? "" : "about "}${count(tokens, "token")}`];
  if (tokens > 1 && turn.seconds > 0) parts.push(`${rounded((tokens - 1) / turn.seconds, 1)} tokens/s`);
  parts.push(`first after ${rounded(turn.first, 2)} s`);
  return parts.join(" · ");
}

const rounded = (number, digits) => number.toLocaleString("en", { maximumFractionDigits: digits });
