// A text that the model continues: one text area, or the same text with the tokens' probabilities.

import { el } from './dom.js';
import { errorBox } from './thread.js';
import { writeStats } from './stats.js';
import { TokenView } from './tokens.js';

/** The view of one text. `actions` has edited() and again(). */
export class TextPage {
  #conversation = null;
  #context = { probabilities: false };
  #view = null;

  constructor(root, actions) {
    this.area = root.querySelector('textarea');
    this.tokens = root.querySelector('#text-tokens');
    this.stats = root.querySelector('.stats');
    this.trouble = root.querySelector('#text-error');
    this.actions = actions;
    this.area.addEventListener('input', () => {
      reconcile(this.#conversation.segments, this.area.value);
      this.#drawFoot(null);
      this.fit();
      actions.edited();
    });
  }

  show(conversation, context, run = null) {
    this.#conversation = conversation;
    this.#context = context;
    this.#view = null;
    this.tokens.replaceChildren();
    this.area.value = '';
    this.draw(run);
  }

  /** Brings the text up to date. Only what is new is written, however long the text is. */
  draw(run = null) {
    const { segments } = this.#conversation;
    const text = textOf(segments);
    const shown = this.area.value;
    if (text !== shown) {
      if (text.startsWith(shown))
        this.area.setRangeText(text.slice(shown.length), shown.length, shown.length, 'preserve');
      else this.area.value = text;
    }
    this.area.readOnly = run !== null;
    this.area.hidden = this.#context.probabilities;
    this.tokens.hidden = !this.#context.probabilities;
    if (this.#context.probabilities) this.#drawTokens(segments);
    else this.fit();
    this.#drawFoot(run);
  }

  /** Lets the text area be as tall as its text, in browsers that cannot do so themselves. */
  fit() {
    if (CSS.supports('field-sizing', 'content')) return;
    this.area.style.blockSize = 'auto';
    this.area.style.blockSize = `${this.area.scrollHeight}px`;
  }

  #drawTokens(segments) {
    const last = segments.at(-1);
    if (this.#view && this.#view.segment === last && this.#view.count === segments.length && last.tokens) {
      this.#view.tokens.update(last.tokens);
      return;
    }
    this.#view = null;
    const nodes = segments.map((segment) => {
      const node = el('span', { class: segment.author === 'model' ? 'by-model' : 'by-you' });
      if (!segment.tokens) node.textContent = segment.content;
      else {
        const tokens = new TokenView(node, 'Tokens of the continuation; the arrow keys go from one to the next');
        tokens.update(segment.tokens);
        if (segment === last) this.#view = { segment, count: segments.length, tokens };
      }
      return node;
    });
    this.tokens.replaceChildren(...nodes);
  }

  #drawFoot(run) {
    const last = this.#conversation.segments.at(-1);
    if (last?.author === 'model') writeStats(this.stats, last, run, this.#context.probabilities);
    else this.stats.replaceChildren();
    this.trouble.replaceChildren(...(last?.error ? [errorBox(last.error, () => this.actions.again())] : []));
  }
}

export const textOf = (segments) => segments.map((segment) => segment.content).join('');

/**
 * Fits the segments to an edited text. What stands before the first change keeps its author; from there on the text is
 * the person's, because the model's probabilities held for another beginning.
 */
function reconcile(segments, text) {
  let at = 0;
  for (const [i, segment] of segments.entries()) {
    if (text.startsWith(segment.content, at)) {
      at += segment.content.length;
      continue;
    }
    let same = 0;
    while (same < segment.content.length && text[at + same] === segment.content[same]) same++;
    segments.splice(i + (same > 0 ? 1 : 0));
    if (same > 0) cut(segment, same);
    at += same;
    break;
  }
  const rest = text.slice(at);
  const last = segments.at(-1);
  if (rest === '') return;
  if (last?.author === 'you') last.content += rest;
  else segments.push({ author: 'you', content: rest });
}

function cut(segment, length) {
  segment.content = segment.content.slice(0, length);
  delete segment.error;
  if (!segment.tokens) return;
  // Whole tokens only; a token cut in two has no probability, so the piece of text then has none either.
  let end = 0;
  const kept = segment.tokens.filter((token) => (end += token.text.length) <= length);
  if (kept.reduce((sum, token) => sum + token.text.length, 0) === length) segment.tokens = kept;
  else delete segment.tokens;
}
