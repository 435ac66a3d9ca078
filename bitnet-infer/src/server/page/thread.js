// The messages of a chat.

import { copyFrom, el, icon, iconButton, svg } from './dom.js';
import { plural } from './format.js';
import { withoutOldest } from './generate.js';
import { LiveMarkdown } from './markdown.js';
import { writeStats } from './stats.js';
import { TokenView } from './tokens.js';

// The three parts of a dialogue wear the three signs.
const SIGNS = {
  system: 'M8 8h0',
  user: 'M3.5 8h9M8 3.5v9',
  assistant: 'M3.5 8h9',
};

/** The view of one conversation's messages. `actions` has regenerate(message), shorten(message), edit(message, text) and editSystem(). */
export class Thread {
  #entries = new Map();
  #conversation = null;
  #context = { modelName: '', probabilities: false };

  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    root.addEventListener('click', (event) => {
      const copy = event.target.closest('[data-copy="code"]');
      if (copy) copyFrom(copy, copy.closest('.code').querySelector('code').textContent);
    });
  }

  /** Shows a conversation from the start. `run` is the answer that is running in it, if one is. */
  show(conversation, context, run = null) {
    this.#conversation = conversation;
    this.#context = context;
    this.#entries.clear();
    const items = document.createDocumentFragment();
    if (conversation.system.trim() !== '') items.append(this.#system(conversation.system));
    for (const [at, message] of conversation.messages.entries()) {
      if (at > 0 && at === conversation.skipped) items.append(skippedMark(at));
      items.append(this.#entry(message, run?.target === message ? run : null));
    }
    this.root.replaceChildren(items);
  }

  /** Brings one message up to date; adds it if it is new, and drops what no longer belongs to the conversation. */
  draw(message, run = null) {
    const entry = this.#entries.get(message);
    if (entry) this.#fill(entry, run);
    else this.root.append(this.#entry(message, run));
    if (this.#entries.size > this.#conversation.messages.length) this.#prune();
  }

  #prune() {
    const kept = new Set(this.#conversation.messages);
    for (const [message, { item }] of this.#entries) {
      if (kept.has(message)) continue;
      item.remove();
      this.#entries.delete(message);
    }
  }

  /** Opens the editor of a message, as its button does. */
  edit(message) {
    const entry = this.#entries.get(message);
    if (!entry || entry.item.querySelector('form')) return;
    const area = el('textarea', { 'aria-label': message.role === 'user' ? 'Your message' : 'The answer', rows: '3' });
    area.value = message.content;
    const later = this.#conversation.messages.length - this.#conversation.messages.indexOf(message) - 1;
    const label = message.role === 'user' ? 'Send again' : 'Save';
    const warning =
      later > 0 ? el('span', { class: 'hint' }, `${plural(later, 'later message')} will be dropped`) : null;
    const close = () => {
      form.replaceWith(entry.body);
      entry.foot.hidden = false;
      entry.edit.focus();
    };
    const save = () => {
      const text = area.value;
      close();
      if (text.trim() !== '' && (message.role === 'user' || text !== message.content)) this.actions.edit(message, text);
    };
    const form = el(
      'form',
      { class: 'editor' },
      area,
      el(
        'div',
        { class: 'actions' },
        warning,
        el('button', { type: 'button', class: 'plain', onclick: close }, 'Cancel'),
        el('button', { type: 'submit', class: 'primary' }, label),
      ),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      save();
    });
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        event.stopPropagation();
        close();
      } else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        save();
      }
    });
    entry.body.replaceWith(form);
    entry.foot.hidden = true;
    area.focus();
    area.style.blockSize = `${Math.min(area.scrollHeight + 4, innerHeight * 0.5)}px`;
  }

  #entry(message, run) {
    const mine = message.role === 'user';
    const body = el('div', { class: 'body' });
    const stats = el('p', { class: 'stats' });
    const copy = iconButton('copy', mine ? 'Copy message' : 'Copy answer', () => copyFrom(copy, message.content));
    const again = mine ? null : iconButton('again', 'Regenerate answer', () => this.actions.regenerate(message));
    const edit = iconButton('edit', mine ? 'Edit message' : 'Edit answer', () => this.edit(message));
    const foot = el('div', { class: 'foot' }, stats, el('div', { class: 'tools' }, copy, again, edit));
    const item = el(
      'li',
      { class: `turn ${message.role}` },
      speaker(message.role, mine ? 'You' : (message.model ?? this.#context.modelName)),
      body,
      foot,
    );
    const entry = { message, item, body, foot, stats, copy, edit, live: null, tokens: null, error: null };
    this.#entries.set(message, entry);
    this.#fill(entry, run);
    return item;
  }

  #fill(entry, run) {
    const { message, item, body, stats } = entry;
    const mine = message.role === 'user';
    item.classList.toggle('running', run !== null);
    item.classList.toggle('waiting', run?.waiting === true);
    // Of nothing there is nothing to copy or to change.
    entry.copy.hidden = entry.edit.hidden = message.content === '';
    if (run) body.setAttribute('aria-busy', 'true');
    else body.removeAttribute('aria-busy');
    if (mine) body.textContent = message.content;
    else if (run?.waiting) this.#fillWaiting(entry);
    else this.#fillAnswer(entry, run);
    if (!mine) writeStats(stats, message, run, this.#context.probabilities);
    this.#fillError(entry, run);
  }

  #fillWaiting(entry) {
    if (entry.body.querySelector('.waiting-mark')) return; // Drawn anew, it would begin its turn again.
    entry.body.replaceChildren(waitingMark());
    entry.live = null;
    entry.tokens = null;
  }

  #fillAnswer(entry, run) {
    const { message, body } = entry;
    const empty = message.content === '' && run === null && !message.error;
    if (empty)
      body.textContent =
        message.stats?.finish === 'stopped' ? 'Stopped before the first token.' : 'The model ended its answer at once.';
    else if (this.#context.probabilities && message.tokens) this.#fillTokens(entry);
    else this.#fillMarkdown(entry);
  }

  #fillTokens(entry) {
    if (!entry.tokens) {
      entry.live = null;
      entry.body.className = 'body';
      entry.tokens = new TokenView(entry.body, 'Tokens of the answer; the arrow keys go from one to the next');
    }
    entry.tokens.update(entry.message.tokens);
  }

  #fillMarkdown(entry) {
    if (!entry.live) {
      entry.tokens = null;
      entry.body.className = 'body prose';
      for (const name of ['role', 'aria-label', 'aria-orientation']) entry.body.removeAttribute(name);
      entry.live = new LiveMarkdown(entry.body);
    }
    entry.live.update(entry.message.content);
  }

  #fillError(entry, run) {
    entry.error?.remove();
    entry.error = null;
    const { message } = entry;
    const { error } = message;
    const full = run === null && message.stats?.finish === 'full';
    if (!error && !full) return;
    const isLast = message === this.#conversation.messages.at(-1);
    const shorter = isLast && (full || error.kind === 'long') && withoutOldest(this.#conversation) !== null;
    const shorten = shorter ? () => this.actions.shorten(message) : null;
    if (full && !isLast) return;
    entry.error = error
      ? errorBox(error, () => this.actions.regenerate(message), shorten)
      : errorBox({ message: FULL }, null, shorten);
    entry.foot.before(entry.error);
  }

  #system(text) {
    const edit = iconButton('edit', 'Edit system prompt', () => this.actions.editSystem());
    return el(
      'li',
      { class: 'turn system' },
      speaker('system', 'System'),
      el('div', { class: 'body' }, text),
      el('div', { class: 'foot' }, el('div', { class: 'tools' }, edit)),
    );
  }
}

const FULL = 'The context is full: the model cannot read more of this conversation, and its answer ends here.';

/** What went wrong, in plain words, with the server's own words below and ways on. */
export function errorBox(error, retry, shorten = null) {
  const detail = error.detail ? el('p', { class: 'detail' }, error.detail) : null;
  return el(
    'div',
    { class: 'error' },
    el('p', {}, error.message),
    detail,
    shorten && el('button', { type: 'button', class: 'plain', onclick: shorten }, 'Go on without the oldest turns'),
    retry && el('button', { type: 'button', class: 'plain', onclick: retry }, icon('again'), 'Try again'),
  );
}

/** Stands in front of the first message that the model still reads. */
function skippedMark(count) {
  return el('li', { class: 'hint skipped' }, `The model no longer reads the ${plural(count, 'message')} above.`);
}

function speaker(role, name) {
  const sign = svg(
    'svg',
    { class: 'sign', viewBox: '0 0 16 16', 'aria-hidden': 'true' },
    svg('path', { d: SIGNS[role] }),
  );
  return el('h2', { class: 'speaker' }, sign, el('span', {}, name));
}

/** Three signs that take turns until the first token comes. */
function waitingMark() {
  const sign = (name, d) => svg('path', { class: `t-${name}`, d });
  const mark = svg('svg', {
    class: 'waiting-mark',
    viewBox: '0 0 48 16',
    role: 'img',
    'aria-label': 'Waiting for the first token',
  });
  mark.append(sign('minus', 'M3.5 8h9'), sign('zero', 'M24 8h0'), sign('plus', 'M35.5 8h9M40 3.5v9'));
  return mark;
}
