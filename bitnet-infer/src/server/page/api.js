// The server's interface: requests with the key where one is needed, and failures in plain words.

import { readEvents } from './sse.js';

const KEY = 'bitnet.key';

/** A failure that can be shown. `kind` says what can be done about it; `detail` holds the server's own words. */
export class ApiError extends Error {
  constructor(kind, message, detail = '') {
    super(message);
    this.kind = kind;
    this.detail = detail;
  }
}

let key = readKey();
let ask = async () => null;
let asking = null;

/** `asker(refused)` asks the person for the API key; null means that none was given. */
export function askKeyWith(asker) {
  ask = asker;
}

export async function getJson(path) {
  const response = await request(path, { method: 'GET' });
  try {
    return await response.json();
  } catch {
    throw new ApiError('format', 'The server sent something that this page cannot read.', `GET ${path}: no JSON`);
  }
}

/** The JSON objects of a streamed POST, one by one. Throws if the stream ends before `[DONE]`. */
export async function* stream(path, body, signal) {
  const response = await request(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
    signal,
  });
  try {
    for await (const data of readEvents(response.body)) {
      if (data === '[DONE]') return;
      const chunk = parse(data);
      if (chunk.error) throw explain(response.status, chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === 'AbortError') throw error;
    throw new ApiError('broken', 'The connection broke off in the middle of the answer.', String(error.message));
  }
  throw new ApiError('broken', 'The connection broke off in the middle of the answer.', 'the stream ended early');
}

/** Whether the server lives and has its model: 'ready', 'loading' or 'away'. */
export async function health() {
  try {
    const response = await fetch('health', { cache: 'no-store' });
    if (response.ok) return 'ready';
    return response.status === 503 ? 'loading' : 'away';
  } catch {
    return 'away';
  }
}

async function request(path, options) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: 'no-store', credentials: 'omit', redirect: 'error' });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ApiError('network', 'The server does not answer. Is it still running?', String(error.message));
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await failure(response);
    await newKey(used);
  }
}

/** Replaces a key that was refused. Requests that fail together share one question. */
async function newKey(refused) {
  if (key !== refused) return; // Another request has asked meanwhile.
  asking ??= ask(refused !== null).finally(() => (asking = null));
  const given = await asking;
  if (!given) throw new ApiError('key', 'The server wants an API key.');
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // Then the key lasts until the page is left.
  }
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy may answer with a page of its own; the status says enough.
  }
  return explain(response.status, error, response.headers.get('Retry-After'));
}

function explain(status, error, retryAfter = null) {
  const detail = typeof error.message === 'string' ? error.message : `HTTP ${status}`;
  if (error.code === 'context_length_exceeded' || status === 413) {
    return new ApiError(
      'long',
      'This is longer than the model can read at once. Shorten it, lower the maximum of tokens, or begin anew.',
      detail,
    );
  }
  if (status === 429) {
    const wait = /^\d+$/.test(retryAfter ?? '') ? ` Try again in ${retryAfter} s.` : ' Try again in a moment.';
    return new ApiError('busy', `The server has more requests than it can take.${wait}`, detail);
  }
  if (status === 503) return new ApiError('loading', 'The server is not ready yet. Try again in a moment.', detail);
  if (status >= 400 && status < 500) return new ApiError('refused', 'The server refused the request.', detail);
  return new ApiError('server', 'Something went wrong in the server.', detail);
}

function parse(data) {
  try {
    const value = JSON.parse(data);
    if (value !== null && typeof value === 'object') return value;
  } catch {
    // Falls through to the one error for everything that is no object.
  }
  throw new ApiError('format', 'The server sent something that this page cannot read.', data.slice(0, 200));
}
