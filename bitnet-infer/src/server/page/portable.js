// Conversations as files: JSON that comes back unchanged, Markdown for people. What is read is checked field by field.

import { newId } from './store.js';

const FORMAT = 'bitnet-conversations';
const VERSION = 1;
const ROLES = ['user', 'assistant', 'system'];
const AUTHORS = ['you', 'model'];
const MODES = ['chat', 'complete'];

export const toJson = (conversations) =>
  `${JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1)}\n`;

export function toMarkdown(conversation) {
  const parts = [`# ${conversation.title || 'Untitled'}`];
  if (conversation.mode === 'complete') {
    parts.push(conversation.segments.map((segment) => segment.content).join(''));
  } else {
    if (conversation.system) parts.push('## System', conversation.system);
    for (const { role, content } of conversation.messages) parts.push(role === 'user' ? '## You' : '## Model', content);
  }
  return `${parts.join('\n\n')}\n`;
}

/** The conversations in a file's text, with new ids where `taken(id)`. Throws an Error that names what is wrong. */
export function fromJson(text, taken) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error('it is not JSON');
  }
  if (file?.format !== FORMAT) throw new Error('it was not exported by this page');
  if (file.version !== VERSION)
    throw new Error(`its version is ${JSON.stringify(file.version)}, this page reads version ${VERSION}`);
  if (!Array.isArray(file.conversations)) throw new Error('it has no list of conversations');
  return file.conversations.map((conversation, i) => {
    const checked = readConversation(conversation, `conversations[${i}]`);
    return taken(checked.id) ? { ...checked, id: newId() } : checked;
  });
}

export function download(name, text, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A file's name from a title: no character that a file system could mind. */
export const fileName = (title, extension) =>
  `${
    title
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, '-')
      .replace(/^-|-$/g, '')
      .slice(0, 48) || 'conversation'
  }.${extension}`;

function readConversation(value, at) {
  object(value, at);
  const skipped = value.skipped === undefined ? {} : { skipped: number(value.skipped, `${at}.skipped`) };
  return {
    ...skipped,
    id: /^[0-9a-f]{18}$/.test(value.id) ? value.id : newId(),
    title: string(value.title, `${at}.title`),
    named: value.named === true,
    mode: oneOf(value.mode, MODES, `${at}.mode`),
    created: number(value.created, `${at}.created`),
    updated: number(value.updated, `${at}.updated`),
    system: string(value.system, `${at}.system`),
    messages: array(value.messages, `${at}.messages`).map((message, i) => {
      const here = `${at}.messages[${i}]`;
      return { ...readPart(message, here), role: oneOf(message.role, ROLES, `${here}.role`) };
    }),
    segments: array(value.segments, `${at}.segments`).map((segment, i) => {
      const here = `${at}.segments[${i}]`;
      return { ...readPart(segment, here), author: oneOf(segment.author, AUTHORS, `${here}.author`) };
    }),
  };
}

function readPart(value, at) {
  object(value, at);
  const part = { content: string(value.content, `${at}.content`) };
  if (value.model !== undefined) part.model = string(value.model, `${at}.model`);
  if (value.edited === true) part.edited = true;
  if (value.stats !== undefined) part.stats = readStats(value.stats, `${at}.stats`);
  if (value.tokens !== undefined)
    part.tokens = array(value.tokens, `${at}.tokens`).map((token, i) => readToken(token, `${at}.tokens[${i}]`));
  return part;
}

function readStats(value, at) {
  object(value, at);
  const stats = {};
  for (const [name, field] of Object.entries(value)) {
    if (name === 'finish') stats.finish = oneOf(field, ['stop', 'length', 'full', 'stopped', 'broken'], `${at}.finish`);
    else if (['promptTokens', 'completionTokens', 'cachedTokens', 'firstTokenMs', 'perSecond'].includes(name)) {
      stats[name] = field === null ? null : number(field, `${at}.${name}`);
    }
  }
  return stats;
}

function readToken(value, at) {
  object(value, at);
  const logprob = (field, here) => (field === null ? null : number(field, here));
  const token = {
    text: string(value.text, `${at}.text`),
    logprob: logprob(value.logprob, `${at}.logprob`),
    top: array(value.top, `${at}.top`).map((other, i) => {
      object(other, `${at}.top[${i}]`);
      return {
        text: string(other.text, `${at}.top[${i}].text`),
        logprob: number(other.logprob, `${at}.top[${i}].logprob`),
      };
    }),
  };
  if (value.bytes !== undefined)
    token.bytes = array(value.bytes, `${at}.bytes`).map((byte) => number(byte, `${at}.bytes`) & 255);
  return token;
}

function object(value, at) {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new Error(`${at} is no object`);
}

function string(value, at) {
  if (typeof value !== 'string') throw new Error(`${at} is no text`);
  return value;
}

function number(value, at) {
  if (typeof value !== 'number' || !Number.isFinite(value)) throw new Error(`${at} is no number`);
  return value;
}

function array(value, at) {
  if (!Array.isArray(value)) throw new Error(`${at} is no list`);
  return value;
}

function oneOf(value, allowed, at) {
  if (!allowed.includes(value))
    throw new Error(`${at} is ${JSON.stringify(value) ?? 'missing'}; allowed: ${allowed.join(', ')}`);
  return value;
}
