// The part of Markdown that models write, made into elements. Text becomes text nodes and nothing
// else: no string is ever read as HTML.

const FENCE = /^\s{0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const LIST_ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE =
  /(`+)([^`]|[^`].*?[^`])\1(?!`)|\*\*(.+?)\*\*|(?<![\w*])\*([^\s*](?:.*?[^\s*])?)\*(?![\w*])|\[([^\]]+)\]\(([^()\s]+)\)|(https?:\/\/[^\s<>"')\]]+)/s;

/** Return a fragment for a text; an unfinished one, as in a stream, is fine. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  appendBlocks(fragment, text.replace(/\r\n?/g, "\n").split("\n"), 0);
  return fragment;
}

function appendBlocks(parent, lines, depth) {
  let at = 0;
  while (at < lines.length) {
    const block = depth < 8 ? findBlock(lines, at, depth) : paragraph(lines, at);
    if (block.element) parent.append(block.element);
    at = block.next;
  }
}

function findBlock(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return { next: at + 1 };
  const fence = line.match(FENCE);
  if (fence) return codeBlock(lines, at, fence[1]);
  const heading = line.match(/^\s{0,3}(#{1,6})\s+(.*)$/);
  if (heading) {
    // The page's own headings are the first two levels.
    const level = Math.min(5, heading[1].length + 2);
    return { element: inlineElement(`h${level}`, heading[2].replace(/\s#+\s*$/, "")), next: at + 1 };
  }
  if (/^\s{0,3}([-*_])\s*(\1\s*){2,}$/.test(line)) {
    return { element: document.createElement("hr"), next: at + 1 };
  }
  if (/^\s{0,3}>/.test(line)) return quote(lines, at, depth);
  if (LIST_ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "")) return table(lines, at);
  return paragraph(lines, at);
}

function codeBlock(lines, at, mark) {
  let end = at + 1;
  while (end < lines.length && !lines[end].trimStart().startsWith(mark)) end += 1;
  const pre = document.createElement("pre");
  const code = document.createElement("code");
  code.textContent = lines.slice(at + 1, end).join("\n");
  pre.append(code);
  return { element: pre, next: end + 1 };
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && /^\s{0,3}>/.test(lines[end])) end += 1;
  const element = document.createElement("blockquote");
  const inner = lines.slice(at, end).map((line) => line.replace(/^\s{0,3}> ?/, ""));
  appendBlocks(element, inner, depth + 1);
  return { element, next: end };
}

function list(lines, at, depth) {
  const first = lines[at].match(LIST_ITEM);
  const isOrdered = /\d/.test(first[2]);
  const element = document.createElement(isOrdered ? "ol" : "ul");
  if (isOrdered) element.start = Number.parseInt(first[2], 10);
  let end = at;
  while (end < lines.length) {
    const item = lines[end].match(LIST_ITEM);
    if (!item || item[1].length > first[1].length || /\d/.test(item[2]) !== isOrdered) break;
    const inner = [item[3]];
    end += 1;
    while (end < lines.length && belongsToItem(lines, end, first[1].length)) {
      inner.push(lines[end].slice(Math.min(first[1].length + 2, lines[end].search(/\S|$/))));
      end += 1;
    }
    const entry = document.createElement("li");
    appendItem(entry, inner, depth);
    element.append(entry);
    if (end < lines.length && !lines[end].trim() && LIST_ITEM.test(lines[end + 1] ?? "")) end += 1;
  }
  return { element, next: Math.max(end, at + 1) };
}

function belongsToItem(lines, at, indent) {
  const line = lines[at];
  if (!line.trim()) return /^\s{2,}\S/.test(lines[at + 1] ?? "");
  return line.search(/\S/) > indent;
}

function appendItem(entry, lines, depth) {
  const isOneLine = lines.length === 1;
  if (isOneLine) appendInline(entry, lines[0]);
  else {
    appendInline(entry, lines[0]);
    appendBlocks(entry, lines.slice(1), depth + 1);
  }
}

function table(lines, at) {
  const element = document.createElement("table");
  element.append(row(lines[at], "th"));
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) {
    element.append(row(lines[end], "td"));
    end += 1;
  }
  return { element, next: end };
}

function row(line, cell) {
  const element = document.createElement("tr");
  const cells = line.trim().replace(/^\||\|$/g, "").split("|");
  element.append(...cells.map((text) => inlineElement(cell, text.trim())));
  return element;
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines[end])) end += 1;
  return { element: inlineElement("p", lines.slice(at, end).join("\n")), next: end };
}

function startsBlock(line) {
  return FENCE.test(line) || LIST_ITEM.test(line) || /^\s{0,3}(>|#{1,6}\s)/.test(line);
}

function inlineElement(name, text) {
  const element = document.createElement(name);
  appendInline(element, text);
  return element;
}

function appendInline(parent, text) {
  let rest = text;
  while (rest) {
    const found = rest.match(INLINE);
    if (!found) break;
    appendText(parent, rest.slice(0, found.index));
    parent.append(inlineNode(found));
    rest = rest.slice(found.index + found[0].length);
  }
  appendText(parent, rest);
}

function inlineNode([all, ticks, code, bold, italic, label, target, address]) {
  if (ticks) {
    const element = document.createElement("code");
    element.textContent = code;
    return element;
  }
  if (bold) return inlineElement("strong", bold);
  if (italic) return inlineElement("em", italic);
  return link(label ?? address, target ?? address) ?? document.createTextNode(all);
}

function link(label, target) {
  // javascript: and data: addresses stay text.
  if (!/^https?:\/\//i.test(target)) return null;
  const element = document.createElement("a");
  element.href = target;
  element.target = "_blank";
  element.rel = "noopener noreferrer";
  element.textContent = label;
  return element;
}

function appendText(parent, text) {
  const lines = text.split(/ {2,}\n|\\\n/);
  lines.forEach((line, index) => {
    if (index) parent.append(document.createElement("br"));
    if (line) parent.append(line);
  });
}
