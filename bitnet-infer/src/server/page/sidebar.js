// The list of conversations.

import { el, icon, iconButton } from './dom.js';
import { when } from './format.js';
import { weave } from './trits.js';

/** Draws the list into `root`. `actions` has open(id), rename(id) and remove(id). */
export function drawList(root, conversations, { current, running, actions }) {
  const nodes = [];
  let group = null;
  let items = null;
  for (const conversation of conversations) {
    const heading = when(conversation.updated);
    if (heading !== group) {
      group = heading;
      items = el('ul', { 'aria-label': heading });
      nodes.push(el('h2', { class: 'group' }, heading), items);
    }
    items.append(row(conversation, conversation.id === current, running(conversation.id), actions));
  }
  if (nodes.length === 0)
    nodes.push(el('p', { class: 'hint' }, 'Conversations stay in this browser. They will be listed here.'));
  // Drawing the list again must not throw somebody out of it.
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const scrolled = root.scrollTop;
  root.replaceChildren(...nodes);
  root.scrollTop = scrolled;
  if (focused) root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function row(conversation, isCurrent, isRunning, actions) {
  const { id } = conversation;
  const title = conversation.title || 'Untitled';
  const open = el(
    'button',
    {
      type: 'button',
      class: 'open',
      'aria-current': isCurrent ? 'true' : null,
      'data-key': `open-${id}`,
      onclick: () => actions.open(id),
    },
    weave(id, 3, 3),
    el('span', { class: 'title' }, title),
    conversation.mode === 'complete' ? el('span', { class: 'tag' }, 'text') : null,
    isRunning ? el('span', { class: 'dot', role: 'img', 'aria-label': 'answering' }) : null,
  );
  const rename = iconButton('edit', `Rename ${title}`, () => actions.rename(id), { 'data-key': `rename-${id}` });
  const remove = iconButton('trash', `Delete ${title}`, () => actions.remove(id), { 'data-key': `remove-${id}` });
  return el('li', {}, open, el('span', { class: 'row-tools' }, rename, remove));
}

/** The side bar as a drawer on narrow screens: while it is open, nothing else can be reached. */
export class Drawer {
  constructor(sidebar, main, button, veil) {
    Object.assign(this, { sidebar, main, button, veil, narrow: matchMedia('(max-width: 52rem)') });
    button.addEventListener('click', () => this.open());
    veil.addEventListener('click', () => this.close());
    const closeFirst = (event) => {
      if (event.key !== 'Escape' || !this.isOpen || document.querySelector('dialog[open]')) return;
      event.stopPropagation(); // An answer that runs behind the drawer goes on.
      this.close();
    };
    addEventListener('keydown', closeFirst, true);
    sidebar.querySelector('#close-drawer').addEventListener('click', () => this.close());
    this.narrow.addEventListener('change', () => this.#set(false));
    this.#set(false);
  }

  get isOpen() {
    return this.sidebar.classList.contains('shown');
  }

  open() {
    this.#set(true);
    this.sidebar.querySelector('#new').focus();
  }

  close() {
    if (!this.isOpen) return;
    this.#set(false);
    this.button.focus();
  }

  #set(open) {
    this.sidebar.classList.toggle('shown', open);
    this.veil.hidden = !open;
    this.main.inert = open;
    // Off the screen it must not be reached by the keyboard either.
    this.sidebar.inert = this.narrow.matches && !open;
    this.button.setAttribute('aria-expanded', String(open));
  }
}

/** What the theme button shows and says. */
export function showTheme(button, choice) {
  const words = { auto: 'as the system', light: 'light', dark: 'dark' };
  button.replaceChildren(icon(`theme-${choice}`), el('span', {}, `Theme: ${words[choice]}`));
}
