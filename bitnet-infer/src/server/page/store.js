// Conversations and settings in the browser's local storage, one entry each, so that saving one does not rewrite all.
//
// A conversation is { id, title, named, mode: 'chat' | 'complete', created, updated, system, messages, segments, skipped? }.
// A chat has messages { role, content, model?, tokens?, stats?, error?, edited? }; a text to complete has segments
// { author: 'you' | 'model', content, model?, tokens?, stats?, error? } that make it up. The first `skipped` messages are not
// sent any more.

const PREFIX = 'bitnet.conversation.';
const SETTINGS = 'bitnet.settings';
const OPEN = 'bitnet.open';

const cache = new Map();
let report = () => {};

/** `reporter(kind)` hears of trouble: 'off' (nothing can be stored), 'full', 'trimmed' (old token details are gone). */
export function reportTo(reporter) {
  report = reporter;
}

/** Reads everything that is stored. What cannot be read is left alone and not listed. */
export function open() {
  cache.clear();
  try {
    for (let i = 0; i < localStorage.length; i++) {
      const key = localStorage.key(i);
      if (key.startsWith(PREFIX)) read(key);
    }
    localStorage.setItem('bitnet.probe', '1');
    localStorage.removeItem('bitnet.probe');
  } catch (error) {
    report(error.name === 'QuotaExceededError' ? 'full' : 'off');
  }
}

/** Newest first. */
export const list = () => [...cache.values()].sort((a, b) => b.updated - a.updated || (a.id < b.id ? 1 : -1));

export const get = (id) => cache.get(id);

/** A new conversation; it is stored when it is first saved. */
export function create(mode) {
  const now = Date.now();
  return {
    id: newId(),
    title: '',
    named: false,
    mode,
    created: now,
    updated: now,
    system: '',
    messages: [],
    segments: [],
  };
}

export function save(conversation) {
  cache.set(conversation.id, conversation);
  const key = PREFIX + conversation.id;
  try {
    localStorage.setItem(key, JSON.stringify(pack(conversation)));
  } catch (error) {
    if (error.name !== 'QuotaExceededError') report('off');
    else report(makeRoom(key, conversation) ? 'trimmed' : 'full');
  }
}

export function remove(id) {
  cache.delete(id);
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // Without storage there is nothing to remove.
  }
}

/** Notes which conversation is shown: for this tab, and for the next one that is opened. */
export function noteOpen(id) {
  for (const storage of ['sessionStorage', 'localStorage']) {
    try {
      globalThis[storage].setItem(OPEN, id);
    } catch {
      // Then a new conversation is shown next time.
    }
  }
}

/** The conversation that was shown last in this tab, or else in any; undefined if it is not there. */
export function lastOpen() {
  for (const storage of ['sessionStorage', 'localStorage']) {
    try {
      const id = globalThis[storage].getItem(OPEN);
      if (id !== null) return cache.get(id);
    } catch {
      // As if nothing had been noted.
    }
  }
  return undefined;
}

export function loadSettings() {
  try {
    const settings = JSON.parse(localStorage.getItem(SETTINGS) ?? '{}');
    return settings && typeof settings === 'object' && !Array.isArray(settings) ? settings : {};
  } catch {
    return {};
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    report('off');
  }
}

/** Hears of conversations that another tab has written or removed. */
export function watch(changed) {
  addEventListener('storage', ({ key, newValue }) => {
    if (!key?.startsWith(PREFIX)) return;
    const id = key.slice(PREFIX.length);
    if (newValue === null) cache.delete(id);
    else read(key);
    changed(id);
  });
}

/** Random, from an interface that plain-HTTP origins have too. */
export const newId = () =>
  [...crypto.getRandomValues(new Uint8Array(9))].map((b) => b.toString(16).padStart(2, '0')).join('');

function read(key) {
  try {
    const conversation = unpack(JSON.parse(localStorage.getItem(key)));
    if (conversation.id === key.slice(PREFIX.length)) cache.set(conversation.id, conversation);
  } catch {
    // Written by something else, or damaged: it stays where it is.
  }
}

/** Token details are by far the largest part, and the least missed: the oldest conversations lose theirs first. */
function makeRoom(key, conversation) {
  const text = JSON.stringify(pack(conversation));
  for (const other of list().reverse()) {
    if (other.id === conversation.id || !dropTokens(other)) continue;
    try {
      localStorage.setItem(PREFIX + other.id, JSON.stringify(pack(other)));
      localStorage.setItem(key, text);
      return true;
    } catch {
      // Not yet enough.
    }
  }
  try {
    localStorage.setItem(key, JSON.stringify(pack(conversation, false)));
    return true;
  } catch {
    return false;
  }
}

function dropTokens(conversation) {
  const parts = [...conversation.messages, ...conversation.segments].filter((part) => part.tokens);
  for (const part of parts) delete part.tokens;
  return parts.length > 0;
}

/** Tokens as short arrays: a tenth of a megabyte for a long answer instead of half of one. */
function pack(conversation, withTokens = true) {
  const part = ({ tokens, ...rest }) => (tokens && withTokens ? { ...rest, tokens: tokens.map(packToken) } : rest);
  return { ...conversation, messages: conversation.messages.map(part), segments: conversation.segments.map(part) };
}

function packToken({ text, logprob, bytes, top }) {
  const packed = [text, round(logprob), top.flatMap((other) => [other.text, round(other.logprob)])];
  return bytes ? [...packed, bytes] : packed;
}

function unpack(conversation) {
  const part = ({ tokens, ...rest }) => {
    // An answer without an end was running when its page was left.
    if (rest.stats && rest.stats.finish === null) rest.stats.finish = 'stopped';
    return tokens ? { ...rest, tokens: tokens.map(unpackToken) } : rest;
  };
  return { ...conversation, messages: conversation.messages.map(part), segments: conversation.segments.map(part) };
}

function unpackToken([text, logprob, pairs, bytes]) {
  const top = [];
  for (let i = 0; i < pairs.length; i += 2) top.push({ text: pairs[i], logprob: pairs[i + 1] });
  return bytes ? { text, logprob, bytes, top } : { text, logprob, top };
}

const round = (logprob) => (logprob === null ? null : Math.round(logprob * 10_000) / 10_000);
