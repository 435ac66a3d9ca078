// What stands where no message is yet: the model's cloth, its facts, and ways to begin.

import { el } from './dom.js';
import { count, magnitude } from './format.js';
import { weave } from './trits.js';

const STARTS = {
  chat: [
    'Explain in two sentences how a model can work with weights of only −1, 0 and 1.',
    'Write four lines about the sea in winter.',
    'Give me three names for a small bookshop, with a reason for each.',
  ],
  complete: [
    'Once upon a time, there was a little fox who',
    'The capital of France is',
    'The reasons why bridges fall are mostly',
  ],
};

/** Draws it into `root`; `begin(text)` puts a text where one is written, `complete()` goes over to continuing text. */
export function drawWelcome(root, server, mode, { begin, complete }) {
  const facts = [];
  if (server?.parameters) facts.push(`${magnitude(server.parameters)} weights`);
  if (server?.contextLength) facts.push(`reads up to ${count(server.contextLength)} tokens`);
  const heading = !server ? 'Waiting for the server' : mode === 'chat' ? 'What shall we talk about?' : 'Begin a text';
  const nodes = [weave(server?.model ?? 'bitnet', 27, 5), el('h2', {}, heading)];
  if (server)
    nodes.push(
      el(
        'p',
        { class: 'facts' },
        el('span', { class: 'model-name' }, server.model),
        facts.length > 0 ? ` · ${facts.join(' · ')}` : '',
      ),
    );
  if (server && mode === 'chat' && !server.hasTemplate) {
    nodes.push(
      el(
        'div',
        { class: 'explain' },
        el(
          'p',
          {},
          'This model has no chat template: it has learnt to continue texts, not to take turns. Give it a beginning.',
        ),
        el('button', { type: 'button', class: 'primary', onclick: complete }, 'Complete a text'),
      ),
    );
  } else if (server) {
    const items = STARTS[mode].map((text) =>
      el('li', {}, el('button', { type: 'button', class: 'start', onclick: () => begin(text) }, text)),
    );
    nodes.push(el('ul', { class: 'starts', 'aria-label': 'Ways to begin' }, ...items));
  }
  root.replaceChildren(...nodes);
}
