// The sheet of sampling settings and the system prompt. An empty field means the server's own default.

import { byId, el } from './dom.js';
import { COMPLETE_MAX_TOKENS } from './generate.js';

const FIELDS = [
  {
    name: 'temperature',
    label: 'Temperature',
    help: '0 always takes the likeliest token; higher is more varied.',
    min: 0,
    max: 2,
    step: 0.05,
    slider: true,
  },
  {
    name: 'top_p',
    label: 'Top p',
    help: 'Only the likeliest tokens that together reach this probability.',
    min: 0,
    max: 1,
    step: 0.01,
    slider: true,
  },
  {
    name: 'top_k',
    label: 'Top k',
    help: 'Only this many of the likeliest tokens; 0 is all.',
    min: 0,
    max: 1_000_000,
    step: 1,
  },
  {
    name: 'min_p',
    label: 'Min p',
    help: 'Only tokens at least this likely, relative to the likeliest.',
    min: 0,
    max: 1,
    step: 0.01,
    slider: true,
  },
  {
    name: 'repetition_penalty',
    label: 'Repetition penalty',
    help: '1 is none; above 1, what was said becomes less likely.',
    min: 0.5,
    max: 2,
    step: 0.01,
    slider: true,
  },
  {
    name: 'seed',
    label: 'Seed',
    help: 'The same number gives the same answer; empty is random.',
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    step: 1,
  },
  {
    name: 'max_tokens',
    label: 'Maximum of tokens',
    help: 'The answer ends here at the latest.',
    min: 1,
    max: 1_000_000,
    step: 1,
  },
];

/** Settings out of whatever was stored: { sampling: { name: number }, record, probabilities, mode }. */
export function readSettings(stored) {
  const sampling = {};
  for (const field of FIELDS) {
    const value = stored.sampling?.[field.name];
    if (check(field, value) === null) sampling[field.name] = value;
  }
  return {
    sampling,
    record: stored.record !== false,
    probabilities: stored.probabilities === true,
    mode: stored.mode === 'complete' ? 'complete' : 'chat',
  };
}

/** The sheet. `changed()` hears of every valid change to `settings`, `systemChanged(text)` of the system prompt. */
export class SettingsSheet {
  #rows = new Map();

  constructor(settings, { changed, systemChanged }) {
    this.settings = settings;
    this.dialog = byId('settings');
    this.system = byId('system-prompt');
    const holder = byId('sampling');
    for (const field of FIELDS) holder.append(this.#row(field, changed));
    const record = byId('record');
    record.checked = settings.record;
    record.addEventListener('change', () => {
      settings.record = record.checked;
      changed();
    });
    this.system.addEventListener('input', () => systemChanged(this.system.value));
    byId('reset-settings').addEventListener('click', () => {
      settings.sampling = {};
      for (const field of FIELDS) this.#write(field);
      changed();
    });
  }

  /** Opens the sheet for a conversation; a text to complete has no system prompt. */
  open({ defaults, conversation, focusSystem = false }) {
    this.defaults = defaults;
    this.mode = conversation.mode;
    for (const field of FIELDS) this.#write(field);
    byId('system-part').hidden = conversation.mode === 'complete';
    this.system.value = conversation.system;
    this.dialog.showModal();
    if (focusSystem) this.system.focus();
  }

  #row(field, changed) {
    const id = `set-${field.name}`;
    const range = { min: field.min, max: field.max, step: field.step };
    const input = el('input', {
      id,
      type: 'number',
      inputmode: 'decimal',
      autocomplete: 'off',
      'aria-describedby': `${id}-help ${id}-error`,
      ...range,
    });
    const slider = field.slider
      ? el('input', { type: 'range', 'aria-label': `${field.label}, slider`, ...range })
      : null;
    const error = el('p', { id: `${id}-error`, class: 'field-error', role: 'status' });
    this.#rows.set(field.name, { input, slider, error });
    const take = (text) => {
      const value = text === '' ? undefined : Number(text);
      const problem = value === undefined && !input.validity.badInput ? null : check(field, value);
      error.textContent = problem ?? '';
      input.setAttribute('aria-invalid', String(problem !== null));
      if (problem !== null) return;
      if (value === undefined) delete this.settings.sampling[field.name];
      else this.settings.sampling[field.name] = value;
      changed();
    };
    input.addEventListener('input', () => {
      take(input.value);
      if (slider && input.value !== '') slider.value = input.value;
    });
    slider?.addEventListener('input', () => {
      input.value = slider.value;
      take(slider.value);
    });
    return el(
      'div',
      { class: 'field' },
      el('label', { for: id }, field.label),
      input,
      slider,
      el('p', { id: `${id}-help`, class: 'hint' }, field.help),
      error,
    );
  }

  #write(field) {
    const { input, slider, error } = this.#rows.get(field.name);
    const value = this.settings.sampling[field.name];
    const fallback = this.#fallback(field.name);
    input.value = value ?? '';
    input.placeholder =
      fallback === null ? ({ seed: 'random', max_tokens: 'no limit' }[field.name] ?? 'default') : rounded(fallback);
    input.setAttribute('aria-invalid', 'false');
    error.textContent = '';
    if (slider) slider.value = value ?? fallback ?? (field.name === 'repetition_penalty' ? 1 : 0);
  }

  #fallback(name) {
    if (name === 'max_tokens' && this.mode === 'complete') return COMPLETE_MAX_TOKENS;
    const value = this.defaults?.[name] ?? null;
    // Servers write -1 for a random seed and for no limit.
    return value !== null && value < 0 ? null : value;
  }
}

/** Servers compute in single precision: 0.800000011920929 is what they make of 0.8. */
const rounded = (value) => String(Number.isInteger(value) ? value : Number(value.toPrecision(6)));

function check(field, value) {
  if (typeof value !== 'number' || !Number.isFinite(value)) return 'This is not a number.';
  if (value < field.min || value > field.max) return `Between ${field.min} and ${field.max}.`;
  if (field.step === 1 && !Number.isInteger(value)) return 'A whole number.';
  return null;
}
