// The dock at the foot: message box, mode, context meter, and the buttons that start and stop an answer.

import { byId, icon } from './dom.js';
import { count } from './format.js';

// From here on the meter warns: an answer may not fit any more.
const NEARLY_FULL = 0.9;

/** `actions` has send(text), stop(), proceed(), undo(), again() and mode(mode). */
export class Composer {
  constructor(actions) {
    this.actions = actions;
    this.form = byId('composer');
    this.area = byId('message');
    this.buttons = {
      send: byId('send'),
      stop: byId('stop'),
      proceed: byId('proceed'),
      undo: byId('undo'),
      again: byId('again'),
    };
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#send();
    });
    this.area.addEventListener('input', () => this.fit());
    // Where fingers type there is no Shift+Enter, so Enter is a new line there.
    this.enterSends = !matchMedia('(pointer: coarse)').matches;
    this.area.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing || !this.enterSends) return;
      event.preventDefault();
      this.#send();
    });
    byId('keys-hint').textContent = this.enterSends
      ? 'Enter sends, Shift and Enter begin a new line.'
      : 'The button sends.';
    for (const name of ['stop', 'proceed', 'undo', 'again'])
      this.buttons[name].addEventListener('click', () => actions[name]());
    for (const radio of this.#modes())
      radio.addEventListener('change', () => radio.checked && actions.mode(radio.value));
  }

  /** Shows what can be done now. */
  show({ mode, running, ready, canChat, canUndo, hasText }) {
    const { send, stop, proceed, undo, again } = this.buttons;
    const held = [send, stop, proceed].includes(document.activeElement);
    this.state = { running, able: ready && canChat };
    byId('message-part').hidden = mode === 'complete';
    send.hidden = mode === 'complete' || running;
    stop.hidden = !running;
    proceed.hidden = mode === 'chat' || running;
    undo.hidden = again.hidden = mode === 'chat' || running || !canUndo;
    proceed.disabled = !ready || !hasText;
    this.#enable();
    for (const radio of this.#modes()) radio.checked = radio.value === mode;
    // The button under the finger changes its name, and the focus goes to what takes its place.
    if (!held) return;
    const next = [stop, proceed, send].find((button) => !button.hidden && !button.disabled);
    if (next) next.focus();
    else if (mode === 'chat' && this.enterSends) this.focus();
  }

  showContext(used, total) {
    const meter = byId('meter');
    meter.hidden = total === null;
    if (total === null) return;
    const share = Math.min((used ?? 0) / total, 1);
    const words = used === null ? `${count(total)} tokens free` : `${count(used)} of ${count(total)} tokens`;
    meter.setAttribute('aria-valuemax', total);
    meter.setAttribute('aria-valuenow', Math.min(used ?? 0, total));
    const said = share >= 1 ? `${words}, full` : share >= NEARLY_FULL ? `${words}, nearly full` : words;
    meter.setAttribute('aria-valuetext', said);
    meter.classList.toggle('full', share >= NEARLY_FULL);
    meter.querySelector('.fill').style.inlineSize = `${share * 100}%`;
    meter.querySelector('.words').textContent = said;
  }

  get text() {
    return this.area.value;
  }

  set text(text) {
    this.area.value = text;
    this.fit();
  }

  focus() {
    this.area.focus({ preventScroll: true });
  }

  fit() {
    this.#enable();
    if (CSS.supports('field-sizing', 'content')) return;
    this.area.style.blockSize = 'auto';
    this.area.style.blockSize = `${this.area.scrollHeight + 2}px`;
  }

  #enable() {
    this.buttons.send.disabled = !this.state?.able || this.area.value.trim() === '';
  }

  #send() {
    if (this.buttons.send.disabled || this.state.running) return;
    const text = this.area.value.trim();
    this.text = '';
    this.actions.send(text);
  }

  #modes() {
    return this.form.querySelectorAll('input[name="mode"]');
  }
}

/** What the probability button shows and says. */
export function showProbabilities(button, on) {
  button.setAttribute('aria-pressed', String(on));
  button.replaceChildren(icon('chance'), document.createTextNode('Probabilities'));
}
