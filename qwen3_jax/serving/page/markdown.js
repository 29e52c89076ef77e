/**
 * Markdown as DOM nodes.
 *
 * Invariant: a text becomes only text nodes and elements of the list below, made with createElement. HTML in it is shown
 * as text, links are http, https or mailto only, and nothing is fetched. No words are lost: unsupported syntax is shown as
 * text. The time is about linear in the length of any text; so no regular expression here may look ahead beyond the next
 * character of the kind that started it.
 *
 * Elements: p h3-h6 ul ol li input(checkbox) blockquote table hr pre code div span button strong em del a br.
 *
 * Differences from CommonMark, to fit what chat models write: a newline in a paragraph is a line break, lists nest from two
 * spaces on, there is no indented code, formulas are kept as text, and Chinese or Japanese next to ** needs no space.
 */

import { element, withInline } from "./inline.js";

const DEEPEST = 16; // nesting of quotes and lists; deeper ones are flattened, because browsers fail on very deep trees
const WIDEST = 100; // columns of a table

/** Render a finished text. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  fill(fragment, text.split("\n"), 0, false);
  return fragment;
}

/** A growing text, rendered into an element. Blocks that later text cannot change are not rendered again. */
export class Growing {
  #parent;
  #settled = 0; // characters of blocks that later text cannot change
  #loose = []; // {source, node} of the blocks after them

  constructor(parent) {
    this.#parent = parent;
  }

  /** Show `text`, which begins with what was shown before; `live` if more will come. */
  update(text, live) {
    const lines = text.slice(this.#settled).split("\n");
    const parsed = [...blocks(lines, 0)];
    const before = this.#loose;
    this.#loose = parsed.map((block, i) => {
      const open = live && i === parsed.length - 1;
      const source = lines.slice(block.from, block.to).join("\n");
      const old = before[i];
      if (old?.source === source && old.open === open) return old;
      const node = block.build(open);
      if (old) old.node.replaceWith(node);
      else this.#parent.append(node);
      return { source, open, node };
    });
    for (const { node } of before.slice(parsed.length)) node.remove();
    // The last line may still change its kind, and with it the end of the block before it; all earlier blocks are final.
    if (parsed.length > 2) {
      const certain = parsed.length - 2;
      this.#settled += lines.slice(0, parsed[certain].from).reduce((sum, line) => sum + line.length + 1, 0);
      this.#loose = this.#loose.slice(certain);
    }
  }
}

// ---- blocks: {from, to, build}, their lines and a function that creates their element ------------------------------------------------

function* blocks(lines, depth) {
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at++;
      continue;
    }
    const block = blockAt(lines, at, depth);
    yield { from: at, ...block };
    at = block.to;
  }
}

function blockAt(lines, at, depth) {
  const deeper = depth < DEEPEST;
  return fenceAt(lines, at) ?? headingAt(lines, at) ?? ruleAt(lines, at) ??
    (deeper ? quoteAt(lines, at, depth) ?? listAt(lines, at, depth) : null) ?? tableAt(lines, at) ?? paragraphAt(lines, at);
}

/** Put the blocks of some lines into an element; only the last one is still open. */
function fill(parent, lines, depth, live) {
  const parsed = [...blocks(lines, depth)];
  parsed.forEach((block, i) => parent.append(block.build(live && i === parsed.length - 1)));
}

/** Whether a line starts a block even directly below a paragraph. */
function interrupts(line) {
  if (opensFence(line) || isHeading(line) || isRule(line) || isQuote(line)) return true;
  const mark = markerOf(line);
  return mark !== null && (!mark.ordered || mark.number === 1) && !isBlank(line.slice(mark.width));
}

const isBlank = (line) => !/\S/.test(line);
const isQuote = (line) => /^\s*>/.test(line);
const isHeading = (line) => /^ {0,3}#{1,6}(?:\s|$)/.test(line);

function isRule(line) {
  if (!/^\s*[-*_]/.test(line)) return false;
  const signs = line.replace(/\s+/g, "");
  return signs.length >= 3 && isOnly(signs, signs[0]);
}

function isOnly(text, sign) {
  for (const one of text) if (one !== sign) return false;
  return true;
}

/** Columns of white space before a line's text. */
function indentOf(line) {
  let columns = 0;
  for (const sign of line) {
    if (sign === " ") columns++;
    else if (sign === "\t") columns += 4 - (columns % 4);
    else break;
  }
  return columns;
}

/** Remove columns of indentation from a line. */
function outdented(line, columns) {
  let at = 0;
  for (let column = 0; column < columns && (line[at] === " " || line[at] === "\t"); at++) {
    column += line[at] === "\t" ? 4 - (column % 4) : 1;
  }
  return line.slice(at);
}

function opensFence(line) {
  const found = /^\s*(`{3,}(?=[^`]*$)|~{3,})/.exec(line);
  return found && { sign: found[1][0], size: found[1].length, label: line.slice(found[0].length).trim() };
}

function closesFence(line, fence) {
  const signs = line.trim();
  return signs.length >= fence.size && isOnly(signs, fence.sign);
}

function fenceAt(lines, at) {
  const fence = opensFence(lines[at]);
  if (!fence) return null;
  let end = at + 1;
  while (end < lines.length && !closesFence(lines[end], fence)) end++;
  const indent = indentOf(lines[at]);
  const build = () => {
    const code = lines.slice(at + 1, end).map((line) => outdented(line, indent));
    const head = element("div", "code-head", [element("span", "language", [fence.label])]);
    const button = element("button", "copy-code", ["Copy"]);
    button.type = "button";
    head.append(button);
    return element("div", "code", [head, element("pre", "", [element("code", "", [code.join("\n")])])]);
  };
  return { to: Math.min(end + 1, lines.length), build };
}

function headingAt(lines, at) {
  if (!isHeading(lines[at])) return null;
  const line = lines[at].trim();
  let level = 0;
  while (line[level] === "#") level++;
  let end = line.length;
  while (end > level && line[end - 1] === "#") end--;
  if (end > level && !/\s/.test(line[end - 1])) end = line.length; // "C#" does not close the heading
  const text = line.slice(level, end).trim();
  // h1 and h2 are the page's own.
  return { to: at + 1, build: (live) => withInline(element(`h${Math.min(level + 2, 6)}`), text, live) };
}

const ruleAt = (lines, at) => (isRule(lines[at]) ? { to: at + 1, build: () => element("hr") } : null);

function quoteAt(lines, at, depth) {
  if (!isQuote(lines[at])) return null;
  let end = at;
  while (end < lines.length && isQuote(lines[end])) end++;
  const inside = lines.slice(at, end).map((line) => line.replace(/^\s*> ?/, ""));
  const build = (live) => {
    const quote = element("blockquote");
    fill(quote, inside, depth + 1, live);
    return quote;
  };
  return { to: end, build };
}

/** The marker of a list item: its position, its number if it has one, and where its text begins. */
function markerOf(line) {
  const found = /^(\s*)([-*+]|(\d{1,9})[.)])(?=\s|$)/.exec(line);
  if (!found || isRule(line)) return null;
  const indent = indentOf(found[1]);
  const spaces = indentOf(line.slice(found[0].length));
  const gap = spaces >= 1 && spaces <= 4 ? spaces : 1;
  const place = { indent, gap, width: found[0].length, column: indent + found[2].length + gap };
  return { ...place, ordered: found[3] !== undefined, number: Number(found[3]) };
}

function listAt(lines, at, depth) {
  const first = markerOf(lines[at]);
  if (!first) return null;
  const items = [];
  let end = at;
  while (end < lines.length) {
    const mark = markerOf(lines[end]);
    if (!mark || mark.ordered !== first.ordered) break;
    const item = itemAt(lines, end, mark);
    items.push(item.lines);
    end = item.to;
  }
  const build = (live) => {
    const list = element(first.ordered ? "ol" : "ul");
    if (first.ordered && first.number !== 1) list.start = first.number;
    items.forEach((item, i) => list.append(listItem(item, depth, live && i === items.length - 1)));
    return list;
  };
  return { to: end, build };
}

/** The lines of one item, without its indentation, and the line after it. */
function itemAt(lines, at, mark) {
  const inside = [outdented(lines[at].slice(mark.width), mark.gap)];
  let fence = opensFence(inside[0]);
  let blanks = 0;
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (fence) {
      // Models often do not indent code in a list; the fence ends it.
      inside.push(outdented(line, mark.column));
      if (closesFence(line, fence)) fence = null;
    } else if (isBlank(line)) {
      blanks++;
    } else {
      const belongs = indentOf(line) >= mark.indent + 2;
      const goesOn = blanks === 0 && !interrupts(line) && !markerOf(line);
      if (!belongs && !goesOn) break;
      for (; blanks > 0; blanks--) inside.push("");
      inside.push(outdented(line, mark.column));
      fence = opensFence(line);
    }
  }
  return { lines: inside, to: end };
}

function listItem(lines, depth, live) {
  const item = element("li");
  const task = /^\[([ xX])\](?=\s)/.exec(lines[0]);
  if (task) {
    const box = element("input");
    box.type = "checkbox";
    box.disabled = true;
    box.checked = task[1] !== " ";
    box.setAttribute("aria-label", box.checked ? "done" : "to do");
    item.className = "task";
    item.append(box);
  }
  fill(item, task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines, depth + 1, live);
  return item;
}

/** The alignment of the columns if a line is a table's delimiter row, e.g. |:--|--:|, else null. */
function sidesOf(line) {
  if (!line.includes("|") || !line.includes("-") || /[^\s|:-]/.test(line)) return null;
  const sides = [];
  for (const cell of cellsOf(line)) {
    if (!/^:?-+:?$/.test(cell)) return null;
    const left = cell.startsWith(":");
    sides.push(cell.endsWith(":") ? (left ? "center" : "right") : "");
  }
  return sides;
}

function cellsOf(line) {
  const cells = [""];
  for (let at = 0; at < line.length; at++) {
    const last = cells.length - 1;
    if (line[at] === "|") cells.push("");
    else if (line[at] === "\\" && line[at + 1] === "|") cells[last] += line[++at];
    else cells[last] += line[at];
  }
  if (isBlank(cells[0])) cells.shift();
  if (cells.length > 0 && isBlank(cells[cells.length - 1])) cells.pop();
  return cells.map((cell) => cell.trim());
}

function startsTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|")) return null;
  const sides = sidesOf(lines[at + 1]);
  if (!sides) return null;
  const head = cellsOf(lines[at]);
  const isGrowing = at + 2 === lines.length; // the second line may be incomplete
  const fits = sides.length === head.length || (isGrowing && sides.length < head.length);
  return fits && head.length > 0 && head.length <= WIDEST ? { sides, head } : null;
}

function tableAt(lines, at) {
  const start = startsTable(lines, at);
  if (!start) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !interrupts(lines[end])) end++;
  const columns = start.head.length;
  const row = (cells, tag, live) => {
    // Surplus cells are joined to the last one. Missing cells are not filled in, or a short text could create millions.
    const kept = cells.length > columns ? [...cells.slice(0, columns - 1), cells.slice(columns - 1).join(" | ")] : cells;
    const made = kept.map((cell, i) => {
      const node = withInline(element(tag), cell, live && i === kept.length - 1);
      if (start.sides[i]) node.style.textAlign = start.sides[i];
      return node;
    });
    return element("tr", "", made);
  };
  const build = (live) => {
    const rows = lines.slice(at + 2, end);
    const body = rows.map((line, i) => row(cellsOf(line), "td", live && i === rows.length - 1));
    const table = element("table", "", [element("thead", "", [row(start.head, "th", false)])]);
    if (body.length > 0) table.append(element("tbody", "", body));
    return element("div", "table", [table]);
  };
  return { to: end, build };
}

function paragraphAt(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines[end]) && !startsTable(lines, end)) end++;
  const text = lines.slice(at, end).map((line) => line.trim());
  return { to: end, build: (live) => withInline(element("p"), text.join("\n"), live) };
}
