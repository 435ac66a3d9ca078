// One running answer: sends the request, gathers text, token probabilities and times into `target`.

import { ApiError, stream } from './api.js';

const TOP = 5;

// The API's own default for completions is 16 tokens, which is no use to somebody who wants a text continued.
export const COMPLETE_MAX_TOKENS = 256;

/** The messages of a conversation that the model still reads. */
export const readMessages = (conversation) => conversation.messages.slice(conversation.skipped ?? 0);

/**
 * How many messages to leave out so that about half of what is read now stays: whole turns, the newest question always. Null if
 * that is none. The answer to that question does not count: it is written anew.
 */
export function withoutOldest(conversation) {
  const { messages, skipped = 0 } = conversation;
  const size = (message) => message.content.length + MESSAGE_CHARACTERS;
  const question = messages.findLastIndex((message) => message.role === 'user');
  let kept = messages.slice(skipped, question + 1).reduce((sum, message) => sum + size(message), 0) / 2;
  let found = null;
  for (let at = question; at > skipped; at--) {
    kept -= size(messages[at]);
    if (found !== null && kept < 0) break;
    if (messages[at].role === 'user') found = at;
  }
  return found;
}

// What a template puts around a message counts too.
const MESSAGE_CHARACTERS = 16;

/** The request for the next message of a chat. */
export function chatRequest({ model, contextLength }, conversation, settings) {
  const messages = readMessages(conversation)
    .filter(({ content }) => content !== '')
    .map(({ role, content }) => ({ role, content }));
  if (conversation.system.trim() !== '') messages.unshift({ role: 'system', content: conversation.system });
  const wanted = settings.record ? { logprobs: true, top_logprobs: TOP } : {};
  const body = { model, messages, ...streaming, ...wanted, ...settings.sampling };
  return { path: 'v1/chat/completions', body, contextLength };
}

/** The request that continues a text. */
export function completeRequest({ model, contextLength }, prompt, settings) {
  const wanted = settings.record ? { logprobs: TOP } : {};
  return {
    path: 'v1/completions',
    body: { model, prompt, ...streaming, ...wanted, max_tokens: COMPLETE_MAX_TOKENS, ...settings.sampling },
    contextLength,
  };
}

const streaming = { stream: true, stream_options: { include_usage: true } };

/**
 * `target` is the message or segment that grows: its content, tokens, stats and error are set here. A `request` has a path, a
 * body, and the tokens of the server's context, or null.
 */
export class Run {
  #abort = new AbortController();
  #started = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;

  constructor(request, target) {
    this.request = request;
    this.target = target;
    target.content = '';
    target.stats = { finish: null };
    delete target.error;
    delete target.tokens;
  }

  /** Runs to the end, calling `changed` after every piece. Never throws: a failure becomes `target.error`. */
  async go(changed) {
    const { target } = this;
    try {
      for await (const chunk of stream(this.request.path, this.request.body, this.#abort.signal)) {
        this.#take(chunk);
        changed();
      }
      target.stats.finish ??= 'stop';
      if (target.stats.finish === 'length' && this.#isFull()) target.stats.finish = 'full';
    } catch (error) {
      if (error.name === 'AbortError') target.stats.finish = 'stopped';
      else {
        target.stats.finish = 'broken';
        const known =
          error instanceof ApiError ? error : new ApiError('page', 'This page made a mistake.', String(error));
        target.error = { kind: known.kind, message: known.message, detail: known.detail };
        if (!(error instanceof ApiError)) console.error(error);
      }
    }
    this.#measure();
  }

  stop() {
    this.#abort.abort();
  }

  /** Whether no token has come yet. */
  get waiting() {
    return this.#first === null;
  }

  get elapsedMs() {
    return performance.now() - this.#started;
  }

  #take(chunk) {
    const choice = chunk.choices?.[0];
    if (choice) {
      const text = choice.delta ? choice.delta.content : choice.text;
      const tokens = readLogprobs(choice.logprobs);
      if (typeof text === 'string') this.target.content += text;
      if (tokens.length > 0) (this.target.tokens ??= []).push(...tokens);
      if (text || tokens.length > 0) {
        this.#last = performance.now();
        this.#first ??= this.#last;
        this.#pieces += Math.max(tokens.length, 1);
        this.#measure();
      }
      if (choice.finish_reason) this.target.stats.finish = choice.finish_reason === 'length' ? 'length' : 'stop';
    }
    if (chunk.usage) this.#readUsage(chunk.usage, chunk.timings);
  }

  #isFull() {
    const { promptTokens, completionTokens } = this.target.stats;
    return Number.isFinite(promptTokens) && promptTokens + completionTokens >= (this.request.contextLength ?? Infinity);
  }

  #readUsage(usage, timings) {
    const { stats } = this.target;
    stats.promptTokens = usage.prompt_tokens ?? null;
    stats.completionTokens = usage.completion_tokens ?? null;
    stats.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? null;
    this.serverRate = Number.isFinite(timings?.predicted_per_second) ? timings.predicted_per_second : null;
  }

  /** By the page's own clock, as a person waits; a rate that the server tells is taken over, for it knows better. */
  #measure() {
    const { stats } = this.target;
    if (this.#first === null) return;
    stats.firstTokenMs = this.#first - this.#started;
    const n = stats.completionTokens ?? this.#pieces;
    stats.completionTokens ??= null;
    const spent = this.#last - this.#first;
    stats.perSecond = this.serverRate ?? (n > 1 && spent > 0 ? ((n - 1) * 1000) / spent : null);
    stats.pieces = this.#pieces;
  }
}

/** Tokens out of either shape: chat's list of objects, or the parallel arrays of completions. */
function readLogprobs(logprobs) {
  if (Array.isArray(logprobs?.content)) {
    return logprobs.content.map(({ token, logprob, bytes, top_logprobs: top = [] }) =>
      makeToken(
        token,
        logprob,
        bytes,
        top.map((other) => ({ text: other.token, logprob: other.logprob })),
      ),
    );
  }
  if (Array.isArray(logprobs?.tokens)) {
    return logprobs.tokens.map((text, i) => {
      const top = Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({
        text: other,
        logprob,
      }));
      return makeToken(text, logprobs.token_logprobs?.[i], null, top);
    });
  }
  return [];
}

function makeToken(text, logprob, bytes, top) {
  const token = {
    text: String(text),
    logprob: Number.isFinite(logprob) ? logprob : null,
    top: top
      .filter((other) => Number.isFinite(other.logprob))
      .sort((a, b) => b.logprob - a.logprob)
      .slice(0, TOP),
  };
  // Bytes are kept only where they say more than the text: a token that is part of a character.
  if (Array.isArray(bytes) && token.text.includes('\ufffd')) token.bytes = bytes;
  return token;
}
