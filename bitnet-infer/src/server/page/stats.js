// The line under an answer: speed, wait and size.

import { el } from './dom.js';
import { count, plural, rate, seconds } from './format.js';
import { perplexity } from './tokens.js';

const ENDS = {
  length: 'ended at the token limit',
  full: 'ended because the context is full',
  stopped: 'stopped',
  broken: 'broke off',
};

/** Writes the line for an answer into `root`; `run` while it is still running. */
export function writeStats(root, part, run, withPerplexity) {
  root.replaceChildren(
    ...describe(part, run, withPerplexity).map(([text, title]) => el('span', { title: title ?? null }, text)),
  );
}

function describe({ stats, tokens, edited }, run, withPerplexity) {
  if (edited) return [['edited']];
  if (!stats) return [];
  if (run?.waiting) return [[`reading the prompt, ${seconds(run.elapsedMs)}`]];
  const parts = [];
  if (stats.perSecond) parts.push([rate(stats.perSecond), 'Speed after the first token']);
  if (Number.isFinite(stats.firstTokenMs))
    parts.push([`first token ${seconds(stats.firstTokenMs)}`, 'Time from sending to the first token']);
  const n = stats.completionTokens ?? stats.pieces;
  if (Number.isFinite(n)) parts.push([plural(n, 'token')]);
  if (Number.isFinite(stats.promptTokens)) {
    const cached = stats.cachedTokens > 0 ? `, ${count(stats.cachedTokens)} cached` : '';
    parts.push([
      `prompt ${count(stats.promptTokens)}${cached}`,
      'Tokens in the prompt, and how many of them the server still knew',
    ]);
  }
  const surprise = withPerplexity && tokens ? perplexity(tokens) : null;
  if (surprise !== null) parts.push([`perplexity ${surprise.toFixed(2)}`, 'Of this answer, under the model itself']);
  if (withPerplexity && !run && !tokens && parts.length > 0) parts.push(['no probabilities recorded']);
  if (!run && parts.length > 0 && ENDS[stats.finish]) parts.push([ENDS[stats.finish]]);
  return parts;
}
