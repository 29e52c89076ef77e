/**
 * Inline Markdown: emphasis, code, links, formulas. The invariant is that of markdown.js.
 */

const DEEPEST = 16; // nesting of emphasis
const SPECIAL = /[\\`*_~[\]!$\n]|https?:\/\//g;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const EAST_ASIAN = /[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]/;
// ( address "title" ): an address has no square brackets or spaces, and parentheses only in pairs.
const TARGET =
  /\(\s{0,3}(?:<([^<>\n]*)>|([^\s()<>[\]]*(?:\([^\s()<>[\]]*\)[^\s()<>[\]]*)*))(?:\s{1,3}(?:"[^"]*"|'[^']*'))?\s{0,3}\)/y;
const BARE = /https?:\/\/[^\s<>"`*|[\]\\]+/y;
const DOLLARS = /\$\$([^$]+)\$\$|\$(?![\s$])([^$\n]*[^\s$\\])\$(?!\w)/y;
const LIKE_FORMULA = /[\\^_={}<>+*/-]|^\w{1,3}$/;

/** Render a text into an element; if `live`, it is still growing. */
export function withInline(parent, text, live) {
  place(new Inline(text, live).tokens, parent, false);
  return parent;
}

/** Return the address if a link may have it, else null. */
function allowed(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * Splits a text into tokens: {text}, {code}, {formula}, {isBreak}, {href, inside}, and {sign, left, ...}, a run of emphasis
 * marks, which learns what it opens and closes.
 */
class Inline {
  tokens = [];
  #text;
  #live;
  #at = 0;
  #brackets = []; // places in `tokens` of [ and ![ that are still open
  #deadLinks = 0; // of the lowest of these, that would make a link inside a link,
  #deadImages = 0; // or inside an image; so unlimited nesting stays text
  #lasts = new Map(); // closing mark -> its last occurrence; checked before a search, so that vain searches cost nothing
  #ticks = null;
  #found = null;

  constructor(text, live) {
    this.#text = text;
    this.#live = live;
    while (this.#at < text.length) this.#next();
    pair(this.tokens, live);
  }

  #next() {
    SPECIAL.lastIndex = this.#at;
    const found = SPECIAL.exec(this.#text);
    const here = found ? found.index : this.#text.length;
    if (here > this.#at) this.tokens.push({ text: this.#text.slice(this.#at, here) });
    this.#at = here;
    const sign = found?.[0][0];
    if (sign === "\\") this.#backslash();
    else if (sign === "`") this.#code();
    else if (sign === "*" || sign === "_" || sign === "~") this.#run(sign);
    else if (sign === "[" || (sign === "!" && this.#text[here + 1] === "[")) this.#openBracket(sign === "!");
    else if (sign === "]") this.#closeBracket();
    else if (sign === "\n") this.#add({ isBreak: true }, 1);
    else if (sign === "h") this.#bareLink();
    else if (sign === "$" && this.#match(DOLLARS)) this.#dollars();
    else if (sign) this.#add({ text: sign }, 1);
  }

  #add(token, length) {
    this.tokens.push(token);
    this.#at += length;
  }

  #match(sticky) {
    sticky.lastIndex = this.#at;
    return (this.#found = sticky.exec(this.#text)) !== null;
  }

  /** Where `mark` occurs next, or -1. */
  #find(mark, from) {
    if (!this.#lasts.has(mark)) this.#lasts.set(mark, this.#text.lastIndexOf(mark));
    return this.#lasts.get(mark) < from ? -1 : this.#text.indexOf(mark, from);
  }

  #backslash() {
    const next = this.#text[this.#at + 1] ?? "";
    const closing = next === "(" ? "\\)" : next === "[" ? "\\]" : null;
    const start = this.#at + 2;
    const found = closing ? this.#find(closing, start) : -1;
    const end = found < 0 && closing && this.#live ? this.#text.length : found;
    if (end >= 0) this.#add({ formula: this.#text.slice(start, end).trim(), display: next === "[" }, end + 2 - this.#at);
    else if (next === "\n") this.#add({ isBreak: true }, 2);
    else if (/[!-/:-@[-`{-~]/.test(next)) this.#add({ text: next }, 2);
    else this.#add({ text: "\\" }, 1);
  }

  #dollars() {
    const [whole, display, inline] = this.#found;
    if (display || LIKE_FORMULA.test(inline)) this.#add({ formula: (display ?? inline).trim(), display }, whole.length);
    else this.#add({ text: "$" }, 1);
  }

  #code() {
    const start = this.#at;
    const size = this.#runLength("`");
    const end = this.#closingTicks(start + size, size);
    if (end < 0) {
      this.#add({ text: "`".repeat(size) }, size);
      return;
    }
    let code = this.#text.slice(start + size, end).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.#add({ code }, end + size - start);
  }

  #closingTicks(from, size) {
    if (!this.#ticks) this.#ticks = new Map([...this.#text.matchAll(/`+/g)].map((run) => [run[0].length, run.index]));
    if ((this.#ticks.get(size) ?? -1) < from) return this.#live ? this.#text.length : -1; // the last run of this size
    const runs = /`+/g;
    runs.lastIndex = from;
    for (let run = runs.exec(this.#text); run; run = runs.exec(this.#text)) if (run[0].length === size) return run.index;
    return -1;
  }

  #runLength(sign) {
    let end = this.#at;
    while (this.#text[end] === sign) end++;
    return end - this.#at;
  }

  /** A run of * or _ or ~~; its neighbours decide whether it may open or close emphasis. */
  #run(sign) {
    const size = this.#runLength(sign);
    const before = [...this.#text.slice(Math.max(0, this.#at - 2), this.#at)].pop() ?? " ";
    const after = [...this.#text.slice(this.#at + size, this.#at + size + 2)].shift() ?? " ";
    const isSpace = (one) => /\s/.test(one);
    const isSign = (one) => PUNCTUATION.test(one) && !EAST_ASIAN.test(one);
    const isEdge = (one) => isSpace(one) || isSign(one) || EAST_ASIAN.test(one);
    const left = !isSpace(after) && (!isSign(after) || isEdge(before));
    const right = !isSpace(before) && (!isSign(before) || isEdge(after));
    const inWord = sign === "_" && left && right;
    const odd = sign === "~" && size !== 2; // "~5 to ~10"
    const canOpen = !odd && left && (!inWord || isSign(before));
    const canClose = !odd && right && (!inWord || isSign(after));
    this.#add({ sign, size, left: size, canOpen, canClose, opens: [], closes: [] }, size);
  }

  #openBracket(isImage) {
    this.#brackets.push({ place: this.tokens.length, isImage });
    this.#add({ text: isImage ? "![" : "[" }, isImage ? 2 : 1);
  }

  #closeBracket() {
    this.#at++;
    const bracket = this.#brackets.pop();
    const height = this.#brackets.length;
    const isDead = !bracket || height < (bracket.isImage ? this.#deadImages : this.#deadLinks);
    const href = !isDead && this.#match(TARGET) ? allowed(this.#found[1] ?? this.#found[2]) : null;
    this.#deadLinks = href && !bracket.isImage ? height : Math.min(this.#deadLinks, height);
    this.#deadImages = href ? height : Math.min(this.#deadImages, height);
    if (!href) {
      this.tokens.push({ text: "]" });
      return;
    }
    const inside = this.tokens.splice(bracket.place).slice(1);
    pair(inside, false);
    this.#add({ href, inside, isImage: bracket.isImage }, this.#found[0].length);
  }

  #bareLink() {
    const known = this.#at > 0 && /\w/.test(this.#text[this.#at - 1]) ? null : this.#match(BARE) ? this.#found[0] : null;
    let end = known?.length ?? 0;
    const ofSentence = known?.includes("(") ? /[.,;:!?'_~]/ : /[.,;:!?'_~)]/;
    while (end > 0 && ofSentence.test(known[end - 1])) end--;
    const href = known && allowed(known.slice(0, end));
    if (href) this.#add({ href, inside: [{ text: known.slice(0, end) }] }, end);
    else this.#add({ text: known ?? "http" }, known?.length ?? 4);
  }
}

/** Pair the runs of marks (CommonMark's algorithm, with a stack). */
function pair(tokens, live) {
  const openers = [];
  const floors = new Map(); // lower bounds of the stack that each kind of closer still has to search
  for (const run of tokens) {
    if (!run.sign) continue;
    const kind = run.sign + run.canOpen + (run.size % 3);
    while (run.canClose && run.left > 0) {
      let at = openers.length - 1;
      const floor = floors.get(kind) ?? 0;
      while (at >= floor && !belong(openers[at], run)) at--;
      if (at < floor) {
        floors.set(kind, openers.length);
        break;
      }
      const opener = openers[at];
      const used = Math.min(2, opener.left, run.left);
      const tag = run.sign === "~" ? "del" : used === 2 ? "strong" : "em";
      opener.opens.push(tag);
      run.closes.push(tag);
      opener.left -= used;
      run.left -= used;
      openers.length = opener.left > 0 ? at + 1 : at;
      for (const [key, height] of floors) floors.set(key, Math.min(height, openers.length));
    }
    if (run.canOpen && run.left > 0) openers.push(run);
  }
  // Treat open ** as closed at the end: it most likely will be, and ** would flash up at every bold word.
  for (const run of live ? openers : []) {
    if (run.left !== 2) continue;
    run.opens.push(run.sign === "~" ? "del" : "strong");
    run.left = 0;
  }
}

function belong(opener, closer) {
  if (opener.sign !== closer.sign) return false;
  const isBoth = opener.canClose || closer.canOpen;
  return !isBoth || (opener.size + closer.size) % 3 !== 0 || (opener.size % 3 === 0 && closer.size % 3 === 0);
}

/** Append the nodes of tokens; a link inside a link is plain text. */
function place(tokens, parent, inLink) {
  const path = [parent];
  let text = "";
  const node = (made) => {
    if (text) path[path.length - 1].append(text);
    text = "";
    if (made) path[path.length - 1].append(made);
  };
  for (const token of tokens) {
    if (token.text !== undefined) text += token.text;
    else if (token.code !== undefined) node(element("code", "", [token.code]));
    else if (token.formula !== undefined) node(element("span", token.display ? "display formula" : "formula", [token.formula]));
    else if (token.isBreak) node(element("br"));
    else if (token.inside && inLink) {
      node();
      place(token.inside, path[path.length - 1], true);
    } else if (token.inside) node(link(token));
    else {
      for (const _ of token.closes) {
        node();
        path.pop();
      }
      text += token.sign.repeat(token.left);
      for (const tag of token.opens.reverse()) { // outermost first
        const inner = path.length < DEEPEST ? element(tag) : null;
        node(inner);
        path.push(inner ?? path[path.length - 1]);
      }
    }
  }
  node();
}

function link({ href, inside, isImage }) {
  const node = element("a", isImage ? "image" : "");
  node.href = href;
  node.rel = "noopener noreferrer";
  node.target = "_blank";
  node.title = href;
  place(inside.length > 0 ? inside : [{ text: href }], node, true);
  return node;
}

export function element(tag, name = "", children = []) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const child of children) node.append(child); // append(...children) could exceed the limit of arguments
  return node;
}
