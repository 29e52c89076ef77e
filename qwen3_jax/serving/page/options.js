/**
 * The thinking slider and the settings: all fields of a request besides the conversation.
 *
 * Invariant: a valid value is stored at once, an invalid one never; an empty field is left out of the request, so that the
 * server's default applies. The API key is stored for the tab, the rest for the browser.
 */

import { lasting, session } from "./memory.js";

const BUDGETS = [0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, null]; // null is no limit
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");
const slider = document.getElementById("budget");
const words = document.getElementById("budget-words");
const kept = lasting.get("settings", {});

export const key = () => session.get("key", "");
export const systemMessage = () => kept.system ?? "";

/** Return the request fields set by the settings and the slider. */
export function requestFields() {
  const fields = {};
  for (const name of NUMBERS) if (kept[name]) fields[name] = Number(kept[name]);
  const budget = BUDGETS[slider.value];
  if (slider.closest("[hidden]") || budget === null) return fields;
  return { ...fields, ...(budget === 0 ? { enable_thinking: false } : { thinking_budget: budget }) };
}

/** Adapt both to the model. */
export function showModel(model) {
  document.getElementById("thinking").hidden = !model.supports_thinking;
  document.getElementById("about-model").textContent =
    `${model.id} has a context of ${model.max_model_len.toLocaleString("en")} tokens: prompt, thinking and answer together.`;
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
  const showBudget = () => {
    const budget = BUDGETS[slider.value];
    words.textContent = budget === 0 ? "off" : budget === null ? "unlimited" : `${budget.toLocaleString("en")} tokens`;
    slider.setAttribute("aria-valuetext", words.textContent);
  };
  slider.max = BUDGETS.length - 1;
  slider.value = lasting.get("budget", BUDGETS.length - 1);
  slider.addEventListener("input", () => {
    showBudget();
    lasting.set("budget", Number(slider.value));
  });
  showBudget();

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
