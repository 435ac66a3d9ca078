// The answers that run, at most one in each conversation. They go on while another conversation is shown.

import { announce } from './dialogs.js';
import { plural } from './format.js';
import { Run } from './generate.js';
import * as store from './store.js';

const SAVE_EVERY_MS = 2000;
const TICK_MS = 250;

const runs = new Map();

export const runIn = (conversation) => runs.get(conversation.id) ?? null;

export const isRunning = (id) => runs.has(id);

/** Ends the answer; what has come of it stays. */
export const stop = (conversation) => runs.get(conversation.id)?.stop();

/** Ends the answer of a conversation that goes another way; nothing is heard of it again. */
export function abandon(conversation) {
  stop(conversation);
  runs.delete(conversation.id);
}

/**
 * Starts an answer that grows in `part`, the last message or segment of `conversation`. `view` has begun(), drawn() and
 * ended(), each called with (conversation, part, run).
 */
export async function start(conversation, part, request, view) {
  const run = new Run(request, part);
  runs.set(conversation.id, run);
  let saved = performance.now();
  let frame = 0;
  const draw = () => {
    frame = 0;
    if (runs.get(conversation.id) === run) view.drawn(conversation, part, run);
  };
  const changed = () => {
    frame ||= requestAnimationFrame(draw); // Many tokens may come in one frame; they are drawn once.
    if (performance.now() - saved < SAVE_EVERY_MS) return;
    saved = performance.now();
    touch(conversation);
  };
  const tick = setInterval(changed, TICK_MS); // Time goes on while the prompt is read.
  touch(conversation);
  view.begun(conversation, part, run);
  announce('The model is answering.');
  await run.go(changed);
  clearInterval(tick);
  cancelAnimationFrame(frame);
  if (runs.get(conversation.id) !== run) return;
  runs.delete(conversation.id);
  touch(conversation);
  view.ended(conversation, part, null);
  announce(ending(part));
}

export function touch(conversation) {
  conversation.updated = Date.now();
  store.save(conversation);
}

/** Said once, at the end: a screen reader would stumble over single tokens. */
function ending({ error, content, stats }) {
  if (error) return error.message;
  const words = stats.finish === 'stopped' ? 'Answer stopped' : 'Answer complete';
  return `${words}, ${plural(stats.completionTokens ?? stats.pieces ?? 0, 'token')}. ${content.slice(0, SPOKEN)}`;
}

const SPOKEN = 600;

// What has come so far is kept when the tab is closed in the middle of an answer.
addEventListener('pagehide', () => {
  for (const conversation of store.list()) if (runs.has(conversation.id)) store.save(conversation);
});
