"use strict";
// Samples are text that a model wrote: they reach the page as text nodes alone, never as HTML.
const samples = JSON.parse(document.getElementById("samples").textContent);
const problems = JSON.parse(document.getElementById("problems").textContent);
const SHOWN = 50;
const fields = ["task", "mode", "budget", "status"];
const filters = document.getElementById("filters");
const list = document.getElementById("list");
let most = SHOWN;

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

for (const field of fields) {
  const label = element("label", "", field + " ");
  const select = element("select");
  select.id = "filter-" + field;
  select.append(new Option("all", ""));
  for (const value of [...new Set(samples.map((sample) => sample[field]))]) select.append(new Option(value, value));
  select.addEventListener("change", () => draw(SHOWN));
  label.append(select);
  filters.append(label);
}
const search = element("input");
search.type = "search";
search.id = "filter-text";
search.placeholder = "text";
search.addEventListener("input", () => draw(SHOWN));
filters.append(search);
const count = element("span", "note");
count.id = "count";
filters.append(count);

function chosen() {
  const wanted = fields.map((field) => [field, document.getElementById("filter-" + field).value]);
  const text = search.value.toLowerCase();
  return samples.filter(
    (sample) =>
      wanted.every(([field, value]) => value === "" || sample[field] === value) &&
      (text === "" || (sample.thinking + "\n" + sample.content + "\n" + sample.reason + "\n" + sample.problem).toLowerCase().includes(text)),
  );
}

function part(into, head, text, name) {
  if (text === "") return;
  into.append(element("h3", "", head), element("pre", name, text));
}

function details(sample) {
  const made = element("details", "sample");
  const summary = element("summary");
  summary.append(
    element("span", "status " + sample.status, sample.status.replace("_", " ")),
    `${sample.task} · ${sample.problem} · ${sample.mode}, budget ${sample.budget}, sample ${sample.number} · ${sample.reason}`,
  );
  made.append(summary);
  made.addEventListener("toggle", () => {
    if (!made.open || made.children.length > 1) return;
    const problem = problems[sample.task + "\n" + sample.problem] || { prompt: "", reference: "" };
    part(made, "prompt", problem.prompt, "");
    part(made, "reference", problem.reference, "");
    part(made, `thinking (${sample.tokens})`, sample.thinking, "thinking");
    part(made, "answer", sample.content, "");
    part(made, "tool calls", sample.calls, "");
    part(made, "verdict", `${sample.status}, score ${sample.score}: ${sample.reason}`, "");
  });
  return made;
}

function draw(upTo) {
  most = upTo;
  const found = chosen();
  count.textContent = `${found.length} of ${samples.length} samples`;
  list.replaceChildren(...found.slice(0, most).map(details));
  if (found.length > most) {
    const more = element("button", "", `${found.length - most} more`);
    more.addEventListener("click", () => draw(most + SHOWN * 4));
    list.append(more);
  }
}
draw(SHOWN);
