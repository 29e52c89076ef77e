/**
 * The thinking slider and the settings: all fields of a request besides the conversation.
 *
 * Invariant: a valid value is stored at once, an invalid one never; an empty field is left out of the request, so that the
 * server's default applies. The API key is stored for the tab, the rest for the browser.
 */

import { lasting, session } from "./memory.js";

const LEAST = 16; // the smallest budget besides none
const ROOM = 64; // for a question, the stop text and an answer, which a budget has to leave
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");
const slider = document.getElementById("budget");
const words = document.getElementById("budget-words");
const kept = lasting.get("settings", {});

let budgets = [0, null]; // the slider's places; null is no limit
let byDefault = null; // the budget of requests that name none

export const key = () => session.get("key", "");
export const systemMessage = () => kept.system ?? "";

/** Return the request fields set by the settings and the slider. */
export function requestFields() {
  const fields = {};
  for (const name of NUMBERS) if (kept[name]) fields[name] = Number(kept[name]);
  const budget = budgets[slider.value];
  if (slider.closest("[hidden]") || budget === byDefault) return fields;
  return { ...fields, ...(budget === 0 ? { enable_thinking: false } : { thinking_budget: budget ?? -1 }) };
}

/** Adapt both to the model: the budgets are those that fit into its context and that the server allows. */
export function showModel(model) {
  document.getElementById("thinking").hidden = !model.supports_thinking;
  document.getElementById("about-model").textContent =
    `${model.id} has a context of ${model.max_model_len.toLocaleString("en")} tokens: prompt, thinking and answer together.`;
  const most = model.max_thinking_budget ?? Infinity;
  byDefault = model.thinking_budget ?? model.max_thinking_budget;
  const steps = [];
  const fits = (budget) => budget !== null && budget <= most && budget + ROOM <= model.max_model_len;
  for (let step = LEAST; fits(step); step *= 2) steps.push(step);
  const given = [byDefault, model.max_thinking_budget].filter(fits);
  budgets = [...new Set([0, ...steps, ...given])].sort((a, b) => a - b);
  if (most === Infinity) budgets.push(null);
  slider.max = budgets.length - 1;
  const stored = lasting.get("thinking_budget", byDefault);
  showBudget(stored === "unlimited" ? null : stored);
}

/** Move the slider to a budget, or to the largest one below it. */
function showBudget(budget) {
  const place = budgets.findLastIndex((each) => each === budget || (budget !== null && each !== null && each <= budget));
  slider.value = place < 0 ? budgets.length - 1 : place;
  showWords();
}

function showWords() {
  const budget = budgets[slider.value];
  words.textContent = budget === 0 ? "off" : budget === null ? "unlimited" : `${budget.toLocaleString("en")} tokens`;
  slider.setAttribute("aria-valuetext", words.textContent);
}

/** Open the settings; with a message about the API key, focus the key and show the message. */
export function openSettings(message = "") {
  const keyMessage = document.getElementById("key-message");
  keyMessage.textContent = message;
  keyMessage.hidden = !message;
  for (const field of form.querySelectorAll("[name]")) field.value = field.name === "key" ? key() : kept[field.name] ?? "";
  if (!dialog.open) dialog.showModal();
  if (message) form.elements.key.focus();
}

/** Set up the controls; `changed` is called when the dialog closes with another key than before. */
export function start(changed) {
  slider.addEventListener("input", () => {
    showWords();
    lasting.set("thinking_budget", budgets[slider.value] ?? "unlimited");
  });

  let keyBefore = key();
  form.addEventListener("input", ({ target }) => {
    if (!target.validity.valid) return;
    if (target.name === "key") session.set("key", target.value.trim());
    else lasting.set("settings", Object.assign(kept, { [target.name]: target.value }));
  });
  dialog.addEventListener("click", ({ target }) => {
    if (target === dialog) dialog.close(); // a click outside of it
  });
  dialog.addEventListener("close", () => {
    if (key() !== keyBefore) changed();
    keyBefore = key();
  });
}
