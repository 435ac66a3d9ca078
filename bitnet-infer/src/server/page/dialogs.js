// Questions, notices and what screen readers hear.

import { byId, el, icon } from './dom.js';

/** Asks yes or no. Resolves to true only for the named action. */
export function confirm({ title, text, action, danger = false }) {
  return question({ title, body: [el('p', {}, text)], action, danger }).then((answer) => answer !== null);
}

/** Asks for one line. Resolves to null when it was not given. */
export async function prompt({ title, text, label, value = '', action, secret = false }) {
  const input = el('input', {
    type: secret ? 'password' : 'text',
    id: 'question-input',
    value,
    autocomplete: 'off',
    maxlength: '400',
  });
  const body = [text ? el('p', {}, text) : null, el('label', { for: 'question-input' }, label), input];
  const answer = await question({ title, body, action, focus: input });
  return answer === null ? null : input.value.trim() || null;
}

let queue = Promise.resolve();

/** Questions come one after another; each waits until the one before is answered. */
function question(options) {
  const answer = queue.then(() => show(options));
  queue = answer.catch(() => {});
  return answer;
}

function show({ title, body, action, danger = false, focus = null }) {
  const dialog = byId('question');
  const cancel = el('button', { type: 'button', class: 'plain', onclick: () => dialog.close('') }, 'Cancel');
  const act = el('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, action);
  const form = el(
    'form',
    {},
    el('h2', { id: 'question-title' }, title),
    ...body,
    el('div', { class: 'actions' }, cancel, act),
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    dialog.close('yes');
  });
  dialog.replaceChildren(form);
  dialog.returnValue = '';
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes' ? 'yes' : null), { once: true });
    dialog.showModal();
    // A destructive question starts on Cancel, so that a stray Enter does no harm.
    (focus ?? (danger ? cancel : act)).focus();
    focus?.select?.();
  });
}

/** Closes a dialog by its backdrop and its close buttons, as Escape does. */
export function dismissable(dialog) {
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog || event.target.closest('[data-close]')) dialog.close();
  });
}

/** Something that screen readers say and that is not seen. */
export function announce(text) {
  byId('announcer').textContent = text;
}

/** A short message at the edge; `stays` for one that must be read. The same text is not shown twice at a time. */
export function notice(text, { stays = false, id = text } = {}) {
  const holder = byId('notices');
  if ([...holder.children].some((child) => child.dataset.id === id)) return;
  const node = el('div', { class: 'notice' }, el('span', {}, text));
  node.dataset.id = id;
  node.append(
    el(
      'button',
      { type: 'button', class: 'quiet', 'aria-label': 'Dismiss', onclick: () => node.remove() },
      icon('close'),
    ),
  );
  holder.append(node);
  if (!stays) setTimeout(() => node.remove(), 6000);
}
