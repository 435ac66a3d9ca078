// Numbers and times in words that people read.

const grouped = new Intl.NumberFormat('en-US');

export const count = (n) => grouped.format(n);

export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;

/** 2412820480 as "2.4 B": two digits say how large a model is. */
export function magnitude(n) {
  for (const [unit, size] of [
    ['T', 1e12],
    ['B', 1e9],
    ['M', 1e6],
    ['K', 1e3],
  ]) {
    if (n >= size) return `${(n / size).toFixed(n / size < 10 ? 1 : 0)} ${unit}`;
  }
  return String(n);
}

export function seconds(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 60_000
    ? `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`
    : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

export const rate = (perSecond) => `${perSecond < 100 ? perSecond.toFixed(1) : count(Math.round(perSecond))} tokens/s`;

/** A probability with the digits that tell small ones apart. */
export function percent(probability) {
  const p = probability * 100;
  if (p >= 99.95 && p < 100) return '>99.9 %';
  if (p > 0 && p < 0.01) return '<0.01 %';
  return `${p.toFixed(p >= 10 ? 1 : 2)} %`;
}

export function when(ms, now = Date.now()) {
  const date = new Date(ms);
  const days = Math.floor((new Date(now).setHours(0, 0, 0, 0) - new Date(ms).setHours(0, 0, 0, 0)) / 86_400_000);
  if (days <= 0) return 'Today';
  if (days === 1) return 'Yesterday';
  if (days < 7) return 'Earlier this week';
  return date.toLocaleDateString('en-US', { month: 'long', year: 'numeric' });
}

/** White space made visible, for a token shown by itself. */
export const visible = (text) => text.replaceAll(' ', '·').replaceAll('\n', '⏎').replaceAll('\t', '⇥') || '∅';

/** The first words of a text, as a conversation's title. */
export function titleFrom(text) {
  const line = text.trim().replace(/\s+/g, ' ');
  if (line.length <= 48) return line;
  const cut = line.slice(0, 48);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(' '), 32)).trimEnd()}…`;
}
