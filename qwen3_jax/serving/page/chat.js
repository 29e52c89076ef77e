/**
 * The chat page: one conversation with one model.
 *
 * Invariant: `turns` is the conversation, alternating user and assistant; screen and session storage follow it. At most one
 * answer is running, and it is the last turn.
 */

import { session } from "./memory.js";
import * as options from "./options.js";
import * as server from "./server.js";
import { fit, newAnswer, sendOnEnter, view } from "./turns.js";

const RETRY_MS = 2000;
const SAVE_MS = 1000;
const AT_END = 32; // pixels

const at = (id) => document.getElementById(id);
const [scroller, conversation, composer, draft, notice, jump] =
  ["scroller", "conversation", "composer", "draft", "notice", "jump"].map(at);

let turns = storedTurns("turns");
let model = null; // once the server is ready
let running = null; // {turn, view, controller}

// ---- the conversation on the screen ---------------------------------------------------------------------------------

const views = new Map(); // turn -> its view
const actions = { copy, regenerate, resend, changed: save };

function showConversation() {
  for (const [turn, { element }] of views) {
    if (turns.includes(turn)) continue;
    element.remove();
    views.delete(turn);
  }
  for (const turn of turns) {
    if (views.has(turn)) continue;
    views.set(turn, view(turn, actions));
    conversation.append(views.get(turn).element);
  }
  at("empty").hidden = turns.length > 0;
  at("previous-chat").hidden = !session.get("previous", null);
  at("new-chat").disabled = turns.length === 0;
  showControls();
}

function showControls() {
  document.body.classList.toggle("ready", model !== null);
  document.body.classList.toggle("running", running !== null);
  at("stop").hidden = running === null;
  at("send").hidden = running !== null;
  at("send").disabled = !model || !draft.value.trim();
}

function storedTurns(name) {
  const stored = session.get(name, []);
  for (const turn of stored) if (turn.state === "running") turn.state = "stopped"; // by leaving the page
  return stored;
}

function save() {
  session.set("turns", turns);
}

// ---- scrolling: follow the end while the user is there --------------------------------------------------------------

let isFollowing = true;
let scrolledTo = 0;

function follow() {
  if (isFollowing) scroller.scrollTop = scroller.scrollHeight;
  showJump();
}

function distanceToEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
}

function showJump() {
  jump.hidden = distanceToEnd() < AT_END;
}

scroller.addEventListener("scroll", () => {
  // Only scrolling up stops following: the answer may have grown again before this event.
  if (distanceToEnd() < AT_END) isFollowing = true;
  else if (scroller.scrollTop < scrolledTo) isFollowing = false;
  scrolledTo = scroller.scrollTop;
  showJump();
}, { passive: true });

jump.addEventListener("click", () => {
  isFollowing = true;
  follow();
  draft.focus();
});

new ResizeObserver(() => (running ? follow() : showJump())).observe(conversation);

// ---- answers --------------------------------------------------------------------------------------------------------

function requestBody() {
  const messages = turns.filter((turn) => turn.text).map(({ role, text }) => ({ role, content: text }));
  const system = options.systemMessage();
  if (system.trim()) messages.unshift({ role: "system", content: system });
  return { model: model.id, messages, stream: true, stream_options: { include_usage: true }, ...options.requestFields() };
}

/** Request an answer to the conversation. */
async function run() {
  const turn = newAnswer();
  const body = requestBody();
  const controller = new AbortController();
  turns.push(turn);
  const mine = (running = { turn, controller });
  showConversation();
  isFollowing = true;
  follow();
  save();
  say("The model is answering.");
  const started = performance.now();
  let saved = started;
  try {
    for await (const chunk of server.answer(body, options.key(), controller.signal)) {
      take(chunk, turn, started);
      showSoon(turn);
      if (performance.now() - saved > SAVE_MS) {
        save();
        saved = performance.now();
      }
    }
    turn.state = "done";
  } catch (error) {
    turn.state = controller.signal.aborted ? "stopped" : "failed";
    turn.error = error.message;
    if (error.status === 401) options.openSettings(error.message);
    if (error.status === 404 || error.status === 503) connect(); // the server was restarted, perhaps with another model
  }
  if (running === mine) running = null;
  views.get(turn)?.show();
  follow();
  showControls();
  save();
  say(turn.state === "failed" ? turn.error : views.get(turn)?.element.querySelector(".markdown").textContent ?? "");
}

/** Add a chunk to the turn. */
function take(chunk, turn, started) {
  if (chunk.usage) turn.usage = chunk.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  turn.finish = choice.finish_reason ?? turn.finish;
  const { content, reasoning_content: thinking } = choice.delta;
  if (!content && !thinking) return;
  const seconds = (performance.now() - started) / 1000;
  turn.first ??= seconds;
  turn.seconds = seconds - turn.first;
  turn.pieces++;
  if (thinking) turn.thoughts++;
  turn.thinking += thinking ?? "";
  turn.text += content ?? "";
}

let frame = 0;

/** Update the view at the next frame; tokens may arrive faster than frames. */
function showSoon(turn) {
  if (frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    if (running?.turn !== turn) return;
    views.get(turn).show();
    follow();
  });
}

function send(text) {
  if (!model || running || !text.trim()) return false;
  turns.push({ role: "user", text });
  run();
  return true;
}

function regenerate() {
  if (!model || running) return;
  turns.pop();
  run();
}

function resend(text) {
  if (!model || running || !text.trim()) return;
  turns = turns.slice(0, turns.findLastIndex((turn) => turn.role === "user"));
  send(text);
  draft.focus();
}

// ---- controls -------------------------------------------------------------------------------------------------------

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (send(draft.value)) writeDraft("");
});

draft.addEventListener("input", () => writeDraft(draft.value));
sendOnEnter(draft, composer);

function writeDraft(text) {
  if (draft.value !== text) draft.value = text;
  session.set("draft", text);
  fit(draft);
  showControls();
}

at("stop").addEventListener("click", () => {
  running?.controller.abort();
  draft.focus();
});

at("new-chat").addEventListener("click", () => {
  running?.controller.abort();
  running = null;
  session.set("previous", turns); // to undo
  turns = [];
  save();
  showConversation();
  draft.focus();
});

at("previous-chat").addEventListener("click", () => {
  turns = storedTurns("previous");
  session.set("previous", null);
  save();
  showConversation();
  follow();
});

at("open-settings").addEventListener("click", () => options.openSettings());

conversation.addEventListener("click", ({ target }) => {
  const button = target.closest(".copy-code");
  if (button) copy(button.closest(".code").querySelector("code").textContent, button);
});

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyWithCommand(text); // the clipboard API needs HTTPS or localhost
  }
  const icon = button.querySelector("use");
  const mark = (name, word) => (icon ? icon.setAttribute("href", name) : (button.textContent = word));
  mark("#done", "Copied");
  setTimeout(() => mark("#copy", "Copy"), 1500);
  say("Copied.");
}

function copyWithCommand(text) {
  const field = document.createElement("textarea");
  const focused = document.activeElement;
  field.value = text;
  field.className = "unseen";
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused?.focus();
}

let clearing = 0;

/** Announce to screen readers; only briefly, so that searching the page does not match everything twice. */
function say(text) {
  at("spoken").textContent = text;
  clearTimeout(clearing);
  clearing = setTimeout(() => (at("spoken").textContent = ""), 2000);
}

// ---- the server -----------------------------------------------------------------------------------------------------

let attempt = 0; // number of the current attempt; older ones end

/** Read the model's name, and wait until it is ready. */
async function connect() {
  const mine = ++attempt;
  model = null;
  showControls();
  while (mine === attempt) {
    try {
      const served = await server.model(options.key());
      options.showModel(served);
      at("model-name").textContent = served.id;
      document.title = `${served.id} · chat`;
      await server.ready();
      if (mine !== attempt) return;
      model = served;
      note("");
      return;
    } catch (error) {
      note(error.message);
      if (error.status === 401) return options.openSettings(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function note(text) {
  if (notice.textContent !== text) notice.textContent = text;
  notice.hidden = !text;
  showControls();
}

// ---- start ----------------------------------------------------------------------------------------------------------

addEventListener("pagehide", save);
options.start(connect);
draft.disabled = false;
draft.value = session.get("draft", "");
fit(draft);
showConversation();
follow();
if (matchMedia("(pointer: fine)").matches) draft.focus();
connect();
