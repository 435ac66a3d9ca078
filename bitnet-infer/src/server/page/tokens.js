// The view of token probabilities: each token tinted by how likely it was, and a popover with the alternatives.

import { byId, el } from './dom.js';
import { percent, visible } from './format.js';

// Five steps from unlikely to certain; the class names are p0 to p4.
const STEPS = [0.05, 0.2, 0.5, 0.8];
const HIDE_AFTER_MS = 150;

const tokenOf = new WeakMap();

/**
 * Shows tokens, more of which may be added. One tab stop: the arrow keys go from token to token, as in a list box.
 * A token that ends in the middle of a character shows nothing itself; the one that completes it shows the character.
 */
export class TokenView {
  #decoder = new TextDecoder();
  #count = 0;

  constructor(root, label) {
    this.root = root;
    root.replaceChildren();
    root.classList.add('tokens');
    root.setAttribute('role', 'listbox');
    root.setAttribute('aria-orientation', 'horizontal');
    root.setAttribute('aria-label', label);
  }

  update(tokens) {
    const added = document.createDocumentFragment();
    for (; this.#count < tokens.length; this.#count++) added.append(this.#option(tokens[this.#count], this.#count));
    this.root.append(added);
  }

  #option(token, index) {
    const text = token.bytes ? this.#decoder.decode(Uint8Array.from(token.bytes), { stream: true }) : token.text;
    const step = token.logprob === null ? '' : ` p${stepOf(Math.exp(token.logprob))}`;
    const option = el('span', {
      role: 'option',
      class: `token${step}`,
      tabindex: index === 0 ? '0' : '-1',
      'aria-label': spoken(text),
    });
    // A line break is drawn, or it could be neither seen nor pointed at.
    option.append(text === '' ? '◌' : text.replaceAll('\n', '⏎\n'));
    tokenOf.set(option, token);
    return option;
  }
}

/** The perplexity of the tokens: the exponential of the mean negative log-probability. */
export function perplexity(tokens) {
  const known = tokens.filter((token) => token.logprob !== null);
  if (known.length === 0) return null;
  return Math.exp(-known.reduce((sum, token) => sum + token.logprob, 0) / known.length);
}

/** Gives every token view inside `root` its popover and its arrow keys. */
export function watchTokens(root) {
  const popover = byId('token-popover');
  let timer = 0;
  let shown = null;

  const show = (option) => {
    clearTimeout(timer);
    if (shown === option) return;
    hide();
    shown = option;
    describe(popover, tokenOf.get(option));
    popover.hidden = false;
    option.setAttribute('aria-describedby', popover.id);
    place(popover, option);
  };
  const hide = () => {
    clearTimeout(timer);
    shown?.removeAttribute('aria-describedby');
    shown = null;
    popover.hidden = true;
  };
  // A pause, so that the pointer can go onto the popover without losing it.
  const hideSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(hide, HIDE_AFTER_MS);
  };
  const optionAt = (event) => event.target.closest?.('[role="option"]');

  root.addEventListener('pointerover', (event) => (optionAt(event) ? show(optionAt(event)) : shown && hideSoon()));
  root.addEventListener('pointerleave', hideSoon);
  popover.addEventListener('pointerenter', () => clearTimeout(timer));
  popover.addEventListener('pointerleave', hideSoon);
  root.addEventListener('focusin', (event) => (optionAt(event) ? show(optionAt(event)) : hide()));
  root.addEventListener('focusout', hideSoon);
  // Scrolling also comes from going to a token; the popover stays beside its token as long as that is seen.
  const follow = () => {
    if (!shown) return;
    const [at, frame] = [shown.getBoundingClientRect(), root.getBoundingClientRect()];
    if (at.bottom < frame.top || at.top > frame.bottom) hide();
    else place(popover, shown);
  };
  root.addEventListener('scroll', follow, { passive: true });
  root.addEventListener('keydown', (event) => {
    const option = optionAt(event);
    if (!option) return;
    const all = option.parentElement;
    const target = {
      ArrowRight: option.nextElementSibling,
      ArrowLeft: option.previousElementSibling,
      Home: all.firstElementChild,
      End: all.lastElementChild,
    }[event.key];
    if (!target) return;
    event.preventDefault();
    option.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  });
  document.addEventListener(
    'keydown',
    (event) => {
      if (event.key !== 'Escape' || popover.hidden) return;
      hide();
      event.stopPropagation(); // The first Escape closes the popover; only the next one stops an answer.
    },
    true,
  );
}

function describe(popover, token) {
  const chosen = token.logprob === null ? null : Math.exp(token.logprob);
  const rows = token.top.map(({ text, logprob }) => row(text, Math.exp(logprob), text === token.text));
  if (chosen !== null && !token.top.some(({ text }) => text === token.text)) rows.push(row(token.text, chosen, true));
  const title = chosen === null ? 'no probability given' : percent(chosen);
  popover.replaceChildren(
    el('div', { class: 'pop-head' }, el('code', {}, visible(token.text)), el('span', {}, title)),
    el('table', {}, el('caption', { class: 'visually-hidden' }, 'Most likely tokens here'), el('tbody', {}, ...rows)),
  );
}

function row(text, probability, chosen) {
  const bar = el('span', { class: 'bar' });
  bar.style.inlineSize = `${Math.max(probability * 100, 0.5)}%`;
  return el(
    'tr',
    { class: chosen ? 'chosen' : null },
    el(
      'th',
      { scope: 'row' },
      el('code', {}, visible(text)),
      chosen ? el('span', { class: 'visually-hidden' }, ' (chosen)') : null,
    ),
    el('td', { class: 'bar-cell', 'aria-hidden': 'true' }, bar),
    el('td', { class: 'number' }, percent(probability)),
  );
}

/** Below the token, or above it where there is no room below. */
function place(popover, option) {
  const at = option.getClientRects()[0] ?? option.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = popover;
  const left = Math.min(Math.max(at.left, 8), Math.max(innerWidth - width - 8, 8));
  const below = at.bottom + 6;
  const top = below + height > innerHeight - 8 && at.top - height - 6 > 0 ? at.top - height - 6 : below;
  popover.style.left = `${left}px`;
  popover.style.top = `${top}px`;
}

const stepOf = (probability) => STEPS.filter((bound) => probability >= bound).length;

const spoken = (text) =>
  text.trim() === '' ? ({ ' ': 'space', '\n': 'line break', '': 'part of a character' }[text] ?? 'white space') : text;
