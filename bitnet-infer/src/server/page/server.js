// What the server says of itself: the model, its context and its defaults.

import { getJson } from './api.js';

// The names that a server may give a setting; ours come first.
const DEFAULT_NAMES = {
  temperature: ['temperature'],
  top_p: ['top_p'],
  top_k: ['top_k'],
  min_p: ['min_p'],
  repetition_penalty: ['repetition_penalty', 'repeat_penalty'],
  seed: ['seed'],
  max_tokens: ['max_tokens', 'n_predict'],
};

/** { model, contextLength, parameters, hasTemplate, defaults }; numbers that are not told are null. */
export async function describeServer() {
  const [models, props] = await Promise.all([getJson('v1/models'), getJson('props')]);
  const first = models.data?.[0] ?? {};
  const meta = first.meta ?? {};
  return {
    model: String(first.id ?? props.model ?? 'model'),
    contextLength: number(props.context_length) ?? number(meta.context_length),
    parameters: number(meta.parameters) ?? number(meta.n_params),
    hasTemplate: typeof props.chat_template === 'string' && props.chat_template !== '',
    defaults: readDefaults(props.default_generation_settings ?? {}),
  };
}

function readDefaults(settings) {
  const defaults = {};
  for (const [name, names] of Object.entries(DEFAULT_NAMES)) {
    defaults[name] =
      names.map((other) => number(settings[other] ?? settings.params?.[other])).find((value) => value !== null) ?? null;
  }
  return defaults;
}

const number = (value) => (typeof value === 'number' && Number.isFinite(value) ? value : null);
