#!/usr/bin/env python3
"""Plays `bitnet-infer serve` for the chat page: the page's files with the real headers, and scripted answers.

    python3 scripts/page_checks/mock.py [--port 8081] [--no-template] [--api-key KEY]

`check_page.py --mock` uses it; by itself it serves the page for work on its looks, with nothing to build. The last
message steers the answer: `[slow]`, `[wait]`, `[long]`, `[markdown]`, `[html]`, `[split]`, `[silent]`, `[break]`,
`[stream-error]`, `[full]` for a context that ends with the answer, and `[error N]` for a status. Needs nothing but Python.
"""

import argparse
import json
import math
import os
import random
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bitnet-infer", "src", "server", "page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CONTEXT = 4096

PLAIN = (
    "A ternary weight is only a sign or a silence: it adds the input, takes it away, or leaves it out. "
    "So a product of matrices becomes a sum with some terms turned over, and one small scale brings it back to size. "
    "What is lost in each weight is won back by having very many of them."
)
MARKDOWN = """## How a ternary layer works

Each weight is **−1**, **0** or **+1**; the layer is a *sum*, with `scale` applied once at the end.

1. Quantize the input to eight bits.
2. Add or subtract, depending on the sign:
   - plus: add
   - minus: subtract
3. Multiply by the scale.

```python
def dot(codes, x, scale):
    return scale * sum(c * v for c, v in zip(codes, x))
```

| Format | Bits | Codes |
| --- | --- | --- |
| binary | 1 | 2 |
| ternary | 1.58 | 3 |

> Few bits, many weights.

More in [the paper](https://arxiv.org/abs/2402.17764); see snake_case_names and 2 * 3 * 4 too."""
HTML = (
    'Here: <script>window.pwned = 1</script><img src=x onerror="window.pwned = 2"> and '
    "[a link](javascript:window.pwned=3) and <b>no bold</b>."
)
SPLIT = "Grüße, 日本語, naïve 🦊 fox. "


def pieces(text):
    """Something like a tokenizer's pieces: words with their leading space, long ones in two."""
    out = []
    for word in re.findall(r"\s?[^\s]+|\s", text):
        out += [word[:5], word[5:]] if len(word) > 8 else [word]
    return out


def chances(piece, index):
    """A log-probability and the five likeliest alternatives, the same for the same place."""
    source = random.Random(f"{piece}{index}")
    chosen = source.choice([0.98, 0.91, 0.83, 0.6, 0.42, 0.15, 0.03])
    others = [" a", " the", " some", "\n", " few"]
    rest = 1 - chosen
    top = [(piece, chosen)]
    for other in [o for o in others if o != piece][: 4 if chosen > 0.1 else 5]:
        rest *= 0.55
        top.append((other, rest))
    top.sort(key=lambda pair: -pair[1])
    return math.log(chosen), [(text, math.log(p)) for text, p in top[:5]]


class Mock(ThreadingHTTPServer):
    """One server. `requests` holds (path, body, headers) of every POST, `open_streams` the answers that run."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0, template=True, api_key=None, delay_s=0.012):
        super().__init__(("127.0.0.1", port), Handler)
        self.template, self.api_key, self.delay_s = template, api_key, delay_s
        self.requests, self.cancelled, self.loading = [], 0, False
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def handle_error(self, request, client_address):
        pass  # A browser that stops reading is part of the play.


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/health":
            loading = {"error": {"message": "Loading model", "type": "unavailable_error", "param": None, "code": None}}
            return self.reply(503, loading) if self.server.loading else self.reply(200, {"status": "ok"})
        name = "index.html" if path == "/" else path[1:]
        if re.fullmatch(r"[a-z_]+\.(html|css|js|svg)", name) and os.path.exists(os.path.join(PAGE, name)):
            return self.page(name)
        if not self.allowed():
            return None
        if path == "/v1/models":
            meta = {"context_length": CONTEXT, "parameters": 2_412_820_480}
            model = {"id": "bitnet-b1.58-2b-4t", "object": "model", "created": 0, "owned_by": "local", "meta": meta}
            return self.reply(200, {"object": "list", "data": [model]})
        if path == "/props":
            defaults = {
                "temperature": 0.800000011920929,
                "top_p": 0.95,
                "top_k": 40,
                "min_p": 0.05,
                "repetition_penalty": 1.0,
                "seed": -1,
                "max_tokens": -1,
            }
            template = (
                "{% for message in messages %}{{ message.content }}{% endfor %}" if self.server.template else None
            )
            return self.reply(
                200,
                {
                    "default_generation_settings": defaults,
                    "chat_template": template,
                    "model": "bitnet-b1.58-2b-4t",
                    "context_length": CONTEXT,
                },
            )
        return self.error(404, "There is no such page.", "not_found")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.allowed():
            return
        request = json.loads(body)
        self.server.requests.append((self.path, request, dict(self.headers)))
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            return self.error(404, "There is no such page.", "not_found")
        said = request["messages"][-1]["content"] if chat else request["prompt"]
        failing = re.search(r"\[error (\d+)\]", said)
        if failing:
            status = int(failing.group(1))
            code = "context_length_exceeded" if status == 400 else None
            return self.error(
                status, f"Scripted failure {status}.", code, {"Retry-After": "7"} if status == 429 else {}
            )
        self.stream(request, said, chat)

    def stream(self, request, said, chat):
        self.send_response(200)
        for name, value in [
            ("Content-Type", "text/event-stream"),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]:
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        text = next(
            (
                text
                for mark, text in [
                    ("[markdown]", MARKDOWN),
                    ("[html]", HTML),
                    ("[split]", SPLIT * 4),
                    ("[silent]", ""),
                    ("[long]", " ".join([PLAIN] * 12)),
                ]
                if mark in said
            ),
            PLAIN,
        )
        tokens = pieces(text)[: request.get("max_tokens") or None]
        cut = "[full]" in said or len(tokens) < len(pieces(text))
        delay = 0.08 if "[slow]" in said else self.server.delay_s
        end = "\r\n" if "[split]" in said else "\n"
        started = time.monotonic()
        try:
            self.wfile.write(f": ping{end}{end}".encode())
            if chat:
                self.event(self.chunk(chat, {"role": "assistant", "content": ""}, None, None), end)
            time.sleep(20 if "[wait]" in said else 1.2 if "[slow]" in said else 0.05)
            first = time.monotonic()
            for index, token in enumerate(tokens):
                if index == 8 and "[break]" in said:
                    return
                if index == 8 and "[stream-error]" in said:
                    fault = {"message": "The engine gave up.", "type": "server_error", "param": None, "code": None}
                    return self.event({"error": fault}, end)
                self.event(
                    self.chunk(
                        chat, {"content": token} if chat else token, self.logprobs(request, chat, token, index), None
                    ),
                    end,
                    in_pieces="[split]" in said,
                )
                time.sleep(delay)
            self.event(self.chunk(chat, {} if chat else "", None, "length" if cut else "stop"), end)
            prompt = (
                sum(len(pieces(m["content"])) + 4 for m in request["messages"])
                if chat
                else len(pieces(request["prompt"]))
            )
            prompt = CONTEXT - len(tokens) if "[full]" in said else min(prompt, CONTEXT - len(tokens) - 200)
            usage = {
                "prompt_tokens": prompt,
                "completion_tokens": len(tokens),
                "total_tokens": prompt + len(tokens),
                "prompt_tokens_details": {"cached_tokens": prompt // 2},
            }
            spent = max(time.monotonic() - first, 1e-6)
            timings = {
                "prompt_ms": (first - started) * 1000,
                "predicted_ms": spent * 1000,
                "predicted_per_second": len(tokens) / spent,
            }
            last = self.chunk(chat, None, None, None)
            self.event({**last, "choices": [], "usage": usage, "timings": timings}, end)
            self.wfile.write(f"data: [DONE]{end}{end}".encode())
        except OSError:
            self.server.cancelled += 1

    def chunk(self, chat, piece, logprobs, finish):
        choice = {"index": 0, "delta" if chat else "text": piece, "logprobs": logprobs, "finish_reason": finish}
        name = "chat.completion.chunk" if chat else "text_completion"
        return {
            "id": "cmpl-1",
            "object": name,
            "created": 0,
            "model": "bitnet-b1.58-2b-4t",
            "choices": [choice],
            "usage": None,
        }

    def logprobs(self, request, chat, token, index):
        if not request.get("logprobs"):
            return None
        logprob, top = chances(token, index)
        if not chat:
            return {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": [dict(top)], "text_offset": [0]}
        spelt = lambda text, lp: {"token": text, "logprob": lp, "bytes": list(text.encode())}
        return {"content": [{**spelt(token, logprob), "top_logprobs": [spelt(*pair) for pair in top]}], "refusal": None}

    def event(self, value, end, in_pieces=False):
        data = f"data: {json.dumps(value, ensure_ascii=False)}{end}{end}".encode()
        # Three bytes a write: that cuts characters, line ends and field names apart.
        for start in range(0, len(data), 3 if in_pieces else len(data)):
            self.wfile.write(data[start : start + 3 if in_pieces else None])
            self.wfile.flush()

    def page(self, name):
        with open(os.path.join(PAGE, name), "rb") as file:
            data = file.read()
        self.send_response(200)
        for header, value in [
            ("Content-Type", TYPES[os.path.splitext(name)[1]]),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-cache"),
            ("Content-Length", str(len(data))),
        ]:
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        if self.server.api_key is None or self.headers.get("Authorization") == f"Bearer {self.server.api_key}":
            return True
        self.error(401, "The API key is wrong or missing.", "invalid_api_key")
        return False

    def error(self, status, message, code, headers=None):
        self.reply(status, {"error": {"message": message, "type": "error", "param": None, "code": code}}, headers)

    def reply(self, status, value, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
            *(headers or {}).items(),
        ]:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--no-template", action="store_true", help="play a model that can only complete")
    parser.add_argument("--api-key")
    options = parser.parse_args()
    server = Mock(options.port, template=not options.no_template, api_key=options.api_key)
    print(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
