/**
 * The view of one turn of the conversation.
 *
 * Invariant: a turn is plain data (stored as it is in the session's storage), and its element shows that data after each
 * `show()`. The view changes only `isOpen` and `edited` of a turn.
 *
 * A user's turn: {role, text, edited}, where `edited` exists while the text is being edited. An answer: {role, text,
 * thinking, state, finish, error, pieces, thoughts, usage, first, seconds, isOpen}, where state is "running", "done",
 * "stopped" or "failed", `pieces` and `thoughts` count deltas until `usage` arrives, `first` is the time from the request
 * to the first token, and `seconds` from there to the last.
 */

import { Growing } from "./markdown.js";

export function newAnswer() {
  return { role: "assistant", text: "", thinking: "", state: "running", pieces: 0, thoughts: 0, isOpen: false };
}

/** Create the view of a turn; `actions` has copy(text, button), regenerate(), resend(text) and changed(). */
export function view(turn, actions) {
  const template = document.getElementById(`${turn.role}-turn`);
  const element = template.content.firstElementChild.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  find(".copy").addEventListener("click", ({ currentTarget }) => actions.copy(turn.text, currentTarget));
  const show = turn.role === "user" ? userView(turn, find, actions) : answerView(turn, find, actions);
  show();
  return { element, show };
}

/** Set a text field's height to that of its text; the style sheet has the bounds. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function userView(turn, find, actions) {
  const form = find(".editing");
  const field = form.querySelector("textarea");
  const edit = (text) => {
    turn.edited = text; // stored, so that a reload keeps it
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

/** Enter sends, Shift+Enter starts a new line; Enter that confirms the composition of an input method does neither. */
export function sendOnEnter(field, form) {
  field.addEventListener("keydown", (event) => {
    const isComposing = event.isComposing || event.keyCode === 229; // Safari ends the composition before the key event
    if (event.key !== "Enter" || event.shiftKey || isComposing) return;
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
    thoughtText.appendData(turn.thinking.trimEnd().slice(thoughtText.length)); // hold trailing blank lines back
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
    find(".regenerate").hidden = turn.state === "failed"; // it has Retry
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
