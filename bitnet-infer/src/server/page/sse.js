// Server-sent events out of a byte stream that may be cut anywhere, also inside a character or between CR and LF.

/** Takes bytes, gives the data of each finished event. By the standard, one that the end cuts off is dropped. */
export class EventParser {
  #decoder = new TextDecoder();
  #line = '';
  #data = [];
  #afterReturn = false;

  push(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    const events = [];
    let from = 0;
    for (let i = 0; i < text.length; i++) {
      const c = text[i];
      if (c !== '\n' && c !== '\r') {
        this.#afterReturn = false;
        continue;
      }
      // The LF of a CRLF pair ends no line of its own, even when the pair came in two pieces.
      if (c === '\r' || !this.#afterReturn) this.#endLine(this.#line + text.slice(from, i), events);
      this.#afterReturn = c === '\r';
      this.#line = '';
      from = i + 1;
    }
    this.#line += text.slice(from);
    return events;
  }

  #endLine(line, events) {
    if (line === '') {
      if (this.#data.length > 0) events.push(this.#data.join('\n'));
      this.#data = [];
      return;
    }
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    // Comments have an empty field; the other fields are for reconnecting, which a POST never does.
    if (field !== 'data') return;
    const value = colon < 0 ? '' : line.slice(colon + 1);
    this.#data.push(value.startsWith(' ') ? value.slice(1) : value);
  }
}

/** The data of each event of a fetch response's body. Cancels the body when the caller stops early. */
export async function* readEvents(body) {
  const reader = body.getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
