// A small Markdown: what models write, as DOM nodes. Markup in the text stays text; only web and mail links are links.

import { el, icon } from './dom.js';

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const ROW = /^\s*\|/;
const DIVIDER = /^\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?\s*)?$/;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const WORD = /[\p{L}\p{N}]/u;

// Deeper nesting is shown as text: a hostile text must not exhaust the stack.
const MAX_DEPTH = 12;

/** Renders a text that grows at its end. Only its last part is drawn again, so length costs nothing. */
export class LiveMarkdown {
  #root;
  #stable = 0; // Characters whose blocks can no longer change.
  #tail = []; // The blocks after them, with their nodes.
  #firstLevel = null; // Of the first heading: it becomes a third level, because the page itself has two.

  constructor(root) {
    this.#root = root;
    root.replaceChildren();
  }

  /** `text` must begin with the text of the last call. */
  update(text) {
    const rest = text.slice(this.#stable);
    const lines = rest.split('\n');
    const blocks = parse(lines, 0);
    if (this.#growCode(blocks)) return;
    for (const { node } of this.#tail) node.remove();
    this.#firstLevel ??= blocks.find(({ kind }) => kind === 'heading')?.level ?? null;
    this.#tail = blocks.map((block) => ({ block, node: render(block, this.#firstLevel ?? 1) }));
    this.#root.append(...this.#tail.map(({ node }) => node));
    // The last line may be unfinished. Without it, all blocks but the last are final: another one has begun after them.
    const settled = parse(lines.slice(0, -1), 0).at(-1)?.line ?? 0;
    this.#stable += lengthOf(rest, settled);
    this.#tail = this.#tail.filter(({ block }) => block.line >= settled);
    for (const { block } of this.#tail) block.line -= settled;
  }

  /** A growing code block gets its new characters appended; it may be long, and it is never parsed inside. */
  #growCode(blocks) {
    if (blocks.length !== 1 || this.#tail.length !== 1) return false;
    const [block] = blocks;
    const [{ block: old, node }] = this.#tail;
    if (block.kind !== 'code' || old.kind !== 'code' || block.language !== old.language) return false;
    if (block.line !== old.line || !block.text.startsWith(old.text)) return false;
    node.querySelector('code').append(block.text.slice(old.text.length));
    this.#tail[0].block = block;
    return true;
  }
}

/** The number of characters in the first `lines` lines. */
function lengthOf(text, lines) {
  let at = 0;
  for (let i = 0; i < lines; i++) at = text.indexOf('\n', at) + 1;
  return at;
}

function parse(lines, depth) {
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    if (lines[i].trim() === '') {
      i++;
      continue;
    }
    const [block, next] = takeBlock(lines, i, depth);
    block.line = i;
    blocks.push(block);
    i = next;
  }
  return blocks;
}

function takeBlock(lines, i, depth) {
  const line = lines[i];
  const fence = FENCE.exec(line);
  if (fence) return takeCode(lines, i, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: 'heading', level: heading[1].length, text: heading[2] }, i + 1];
  if (RULE.test(line)) return [{ kind: 'rule' }, i + 1];
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return takeQuote(lines, i, depth);
    if (ITEM.test(line)) return takeList(lines, i, depth);
  }
  if (startsTable(lines, i)) return takeTable(lines, i);
  let next = i + 1;
  while (next < lines.length && lines[next].trim() !== '' && !interrupts(lines[next]) && !startsTable(lines, next))
    next++;
  return [{ kind: 'paragraph', text: lines.slice(i, next).join('\n') }, next];
}

const interrupts = (line) =>
  FENCE.test(line) ||
  HEADING.test(line) ||
  RULE.test(line) ||
  QUOTE.test(line) ||
  /^ {0,3}([-*+]|1[.)])\s+\S/.test(line);

const startsTable = (lines, i) => ROW.test(lines[i]) && DIVIDER.test(lines[i + 1] ?? '');

function takeCode(lines, i, [, fence, info]) {
  const body = [];
  for (let j = i + 1; j < lines.length; j++) {
    const end = lines[j].trim();
    if (end.length >= fence.length && end === fence[0].repeat(end.length)) {
      return [{ kind: 'code', language: info.trim().split(/\s/)[0], text: body.join('\n') }, j + 1];
    }
    body.push(lines[j]);
  }
  return [{ kind: 'code', language: info.trim().split(/\s/)[0], text: body.join('\n') }, lines.length];
}

function takeQuote(lines, i, depth) {
  const body = [];
  while (i < lines.length && lines[i].trim() !== '' && (QUOTE.test(lines[i]) || !interrupts(lines[i])))
    body.push(lines[i++].replace(QUOTE, ''));
  return [{ kind: 'quote', blocks: parse(body, depth + 1) }, i];
}

function takeTable(lines, i) {
  const cells = (line) =>
    line
      .trim()
      .replace(/^\||\|$/g, '')
      .split('|')
      .map((cell) => cell.trim());
  const table = { kind: 'table', head: cells(lines[i]), rows: [] };
  for (i += 2; i < lines.length && ROW.test(lines[i]); i++) table.rows.push(cells(lines[i]));
  return [table, i];
}

function takeList(lines, i, depth) {
  const first = ITEM.exec(lines[i]);
  const ordered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let indent = 0;
  const sibling = (line) => {
    const match = ITEM.exec(line);
    return match && match[1].length <= base + 1 && /\d/.test(match[2]) === ordered && !RULE.test(line) ? match : null;
  };
  const inside = (line) => leading(line) >= indent || (ITEM.test(line) && leading(line) > base + 1);
  for (; i < lines.length; i++) {
    const line = lines[i];
    const match = sibling(line);
    if (match) {
      indent = match[1].length + match[2].length + Math.min(Math.max(match[3].length, 1), 4);
      items.push([line.slice(match[0].length)]);
    } else if (line.trim() === '') {
      let next = i;
      while (next < lines.length && lines[next].trim() === '') next++;
      if (next === lines.length || !(sibling(lines[next]) || inside(lines[next]))) break;
      items.at(-1).push('');
      i = next - 1;
    } else if (inside(line)) {
      items.at(-1).push(line.slice(Math.min(indent, leading(line))));
    } else if (interrupts(line) || lines[i - 1].trim() === '') {
      break;
    } else {
      items.at(-1).push(line.trim());
    }
  }
  const start = ordered ? Number.parseInt(first[2], 10) : 1;
  return [{ kind: 'list', ordered, start, items: items.map((item) => parse(item, depth + 1)) }, i];
}

const leading = (line) => line.length - line.trimStart().length;

/** `top` is the level that the answer's first heading has in its text. */
function render(block, top) {
  const within = (blocks) => blocks.map((inner) => render(inner, top));
  switch (block.kind) {
    case 'heading': {
      const node = el(`h${Math.min(Math.max(block.level - top, 0) + 3, 6)}`);
      node.append(...inline(block.text));
      return node;
    }
    case 'rule':
      return el('hr');
    case 'code':
      return renderCode(block);
    case 'quote':
      return el('blockquote', {}, ...within(block.blocks));
    case 'list': {
      const items = block.items.map((blocks) => el('li', {}, ...renderItem(blocks, within)));
      return el(block.ordered ? 'ol' : 'ul', { start: block.start === 1 ? null : block.start }, ...items);
    }
    case 'table': {
      const row = (cells, tag) => el('tr', {}, ...cells.map((cell) => el(tag, {}, ...inline(cell))));
      const body = el('tbody', {}, ...block.rows.map((cells) => row(cells, 'td')));
      const table = el('table', {}, el('thead', {}, row(block.head, 'th')), body);
      return el('div', { class: 'table', tabindex: '0', role: 'region', 'aria-label': 'Table' }, table);
    }
    default:
      return el('p', {}, ...inline(block.text));
  }
}

/** An item of one paragraph has no paragraph around it, so that plain lists stand close. */
function renderItem(blocks, within) {
  const [first, ...rest] = blocks;
  if (first?.kind === 'paragraph') return [...inline(first.text), ...within(rest)];
  return within(blocks);
}

function renderCode({ language, text }) {
  const copy = el(
    'button',
    { type: 'button', class: 'quiet small', 'data-copy': 'code', 'aria-label': 'Copy code' },
    icon('copy'),
    'Copy',
  );
  const code = el('code', {}, text);
  const label = language ? `Code, ${language}` : 'Code';
  return el(
    'div',
    { class: 'code' },
    el('div', { class: 'code-head' }, el('span', {}, language || 'code'), copy),
    el('pre', { tabindex: '0', role: 'region', 'aria-label': label }, code),
  );
}

/** Bold, italics, struck, code and links inside one block. */
function inline(text, depth = 0) {
  const nodes = [];
  const dead = new Set(); // Marks known to have no partner further on, or a row of them would cost its square.
  let plain = '';
  let i = 0;
  const add = (node, next) => {
    if (plain) nodes.push(plain);
    plain = '';
    nodes.push(node);
    i = next;
  };
  while (i < text.length) {
    const special = /[\\`*_~[!h]/g;
    special.lastIndex = i;
    const at = special.exec(text)?.index ?? text.length;
    plain += text.slice(i, at);
    i = at;
    if (i === text.length) break;
    const found =
      depth < MAX_DEPTH &&
      (escape(text, i) ?? codeSpan(text, i, dead) ?? link(text, i, depth, dead) ?? emphasis(text, i, depth, dead));
    if (!found) plain += text[i++];
    else if (typeof found.node === 'string') {
      plain += found.node;
      i = found.next;
    } else add(found.node, found.next);
  }
  if (plain) nodes.push(plain);
  return nodes;
}

function escape(text, i) {
  if (text[i] !== '\\' || !/[!-/:-@[-`{-~]/.test(text[i + 1] ?? '')) return null;
  return { node: text[i + 1], next: i + 2 };
}

function codeSpan(text, i, dead) {
  if (text[i] !== '`') return null;
  const ticks = /^`+/.exec(text.slice(i, i + 64))[0];
  if (dead.has(ticks)) return { node: ticks, next: i + ticks.length };
  for (let end = text.indexOf(ticks, i + ticks.length); end >= 0; end = text.indexOf(ticks, end + 1)) {
    if (text[end + ticks.length] === '`' || text[end - 1] === '`') continue;
    let body = text.slice(i + ticks.length, end);
    if (/^ .*[^ ].* $/.test(body)) body = body.slice(1, -1);
    return { node: el('code', {}, body), next: end + ticks.length };
  }
  dead.add(ticks);
  return { node: ticks, next: i + ticks.length };
}

function link(text, i, depth, dead) {
  if (text[i] === 'h') {
    const bare = /^https?:\/\/[^\s<>"'`]+/.exec(text.slice(i, i + 2048));
    if (!bare || (i > 0 && WORD.test(text[i - 1]))) return null;
    const url = bare[0].replace(/[.,;:!?)\]*_~]+$/, '');
    return { node: anchor(url, [url]), next: i + url.length };
  }
  // An image is shown as a link: the page loads nothing from elsewhere.
  const open = text[i] === '!' && text[i + 1] === '[' ? i + 1 : i;
  if (text[open] !== '[' || dead.has('](')) return null;
  const middle = text.indexOf('](', open);
  if (middle < 0) {
    dead.add('](');
    return null;
  }
  const target = /^\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/.exec(
    text.slice(middle + 1, middle + 2049),
  );
  const label = text.slice(open + 1, middle);
  if (!target || !SAFE_LINK.test(target[1]) || label.includes('[')) return null;
  return { node: anchor(target[1], inline(label, depth + 1)), next: middle + 1 + target[0].length };
}

const anchor = (href, children) =>
  el('a', { href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...children);

function emphasis(text, i, depth, dead) {
  for (const [mark, tag] of [
    ['**', 'strong'],
    ['__', 'strong'],
    ['~~', 'del'],
    ['*', 'em'],
    ['_', 'em'],
  ]) {
    if (!text.startsWith(mark, i)) continue;
    const after = text[i + mark.length] ?? ' ';
    if (dead.has(mark) || /\s/.test(after)) return { node: mark, next: i + mark.length };
    // snake_case_names are no emphasis.
    if (mark[0] === '_' && i > 0 && WORD.test(text[i - 1])) return { node: mark, next: i + mark.length };
    const end = closing(text, i + mark.length, mark);
    if (end < 0) {
      dead.add(mark);
      return { node: mark, next: i + mark.length };
    }
    return { node: el(tag, {}, ...inline(text.slice(i + mark.length, end), depth + 1)), next: end + mark.length };
  }
  return null;
}

function closing(text, from, mark) {
  for (let end = text.indexOf(mark, from + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
    if (/[\s\\]/.test(text[end - 1])) continue;
    const next = text[end + mark.length] ?? ' ';
    if (mark.length === 1 && (next === mark || text[end - 1] === mark)) {
      if (next === mark) end++;
      continue;
    }
    if (mark === '**' && next === '*') end++; // In `***` the inner mark closes first.
    if (mark[0] === '_' && WORD.test(next)) continue;
    return end;
  }
  return -1;
}
