"""The official `openai` client (PyPI) against the server: completions, chats, streams, log-probabilities, errors, n, stop, seed.

    python scripts/check_openai.py --serve MODEL [--binary target/release/bitnet-infer]

needs `pip install openai`. Every line is a check; the exit code is non-zero if one fails.
"""

import argparse
import math
import sys

from serving import ROOT, Server

try:
    import openai
except ImportError:
    sys.exit("this script needs the package openai: pip install openai")

passed = failed = 0


def check(name, holds, shown=""):
    global passed, failed
    passed, failed = passed + bool(holds), failed + (not holds)
    print(f"{'ok  ' if holds else 'FAIL'} {name}{f': {shown}' if shown != '' else ''}")


def raises(kind, name, call, text=""):
    try:
        call()
    except kind as error:
        check(name, text in str(error), f"{type(error).__name__} {getattr(error, 'status_code', '')} {str(error)[:110]}")
    else:
        check(name, False, "no error")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", required=True, metavar="MODEL")
    parser.add_argument("--binary", default=ROOT / "target/release/bitnet-infer")
    args = parser.parse_args()
    server = Server.bitnet(args.binary, args.serve, "--chat-template", "plain", "--name", "bitnet", "--api-key", "secret")
    try:
        run(server)
    finally:
        server.stop()
    print(f"openai {openai.__version__}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


def run(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0)
    models = client.models.list().data
    check("models.list", [model.id for model in models] == ["bitnet"], models[0].id)
    check("models.retrieve", client.models.retrieve("bitnet").object == "model")

    def complete(**more):
        return client.completions.create(**{"model": "bitnet", "prompt": "Once upon a time", "max_tokens": 24, "seed": 3, **more})

    first = complete()
    check("completions.create", first.choices[0].text, repr(first.choices[0].text))
    usage = first.usage
    check("usage adds up", usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage.total_tokens)
    check("same seed, same text", complete().choices[0].text == first.choices[0].text)
    check("another seed, another text", any(complete(seed=s).choices[0].text != first.choices[0].text for s in (4, 5, 6)))
    pieces = list(complete(stream=True, stream_options={"include_usage": True}))
    check("a stream says the same", "".join(c.choices[0].text for c in pieces if c.choices) == first.choices[0].text)
    check("include_usage", pieces[-1].usage.total_tokens == usage.total_tokens and not pieces[-1].choices)
    several = complete(n=3, prompt=["Once upon a time", "Tom"])
    check("n and lists of prompts", [choice.index for choice in several.choices] == list(range(6)))
    check("choice 0 of n is the text of n = 1", several.choices[0].text == first.choices[0].text)
    middle = first.choices[0].text[5:8]
    stopped = complete(stop=[middle]).choices[0]
    expected = first.choices[0].text.split(middle)[0]
    check("stop", stopped.text == expected and stopped.finish_reason == "stop", repr(stopped.text))
    echoed = complete(echo=True, logprobs=3, max_tokens=4).choices[0]
    log = echoed.logprobs
    check("echo", echoed.text.startswith("Once upon a time"))
    lengths = {len(log.tokens), len(log.token_logprobs), len(log.top_logprobs), len(log.text_offset)}
    check("logprobs: four lists of one length", lengths == {first.usage.prompt_tokens + 4}, lengths)
    check("logprobs: none for the first token", log.token_logprobs[0] is None)
    check("logprobs: probabilities", all(p <= 0 for p in log.token_logprobs[1:]))
    sums = [sum(math.exp(p) for p in top.values()) for top in log.top_logprobs[1:]]
    check("top_logprobs: no more than 1 together", all(0 < total <= 1 + 1e-5 for total in sums))
    ids = server_tokens(server, "Once upon a time")
    check("token ids as a prompt", complete(prompt=ids, temperature=0).choices[0].text
          == complete(temperature=0).choices[0].text)
    check("logit_bias", complete(logit_bias={str(ids[-1]): 100}, max_tokens=3, temperature=0).usage.completion_tokens == 3)

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story."}]

    def chat(**more):
        return client.chat.completions.create(**{"model": "bitnet", "messages": messages, "max_tokens": 20, "seed": 1, **more})

    answer = chat()
    check("chat.completions.create", answer.choices[0].message.role == "assistant", repr(answer.choices[0].message.content))
    deltas = list(chat(stream=True))
    check("chat stream: role first", deltas[0].choices[0].delta.role == "assistant")
    joined = "".join(d.choices[0].delta.content or "" for d in deltas)
    check("chat stream says the same", joined == answer.choices[0].message.content)
    check("chat stream: finish_reason last", deltas[-1].choices[0].finish_reason == answer.choices[0].finish_reason)
    scored_answer = chat(logprobs=True, top_logprobs=4)
    scored = scored_answer.choices[0].logprobs.content
    check("chat logprobs: one for each token", len(scored) == scored_answer.usage.completion_tokens, len(scored))
    check("chat logprobs", all(len(entry.top_logprobs) == 4 and entry.logprob <= 0 for entry in scored), len(scored))
    spelled = b"".join(bytes(entry.bytes) for entry in scored).decode(errors="replace")
    check("chat logprobs spell the text", spelled.startswith(answer.choices[0].message.content[:10]), repr(spelled[:30]))
    check("chat n", len(chat(n=4).choices) == 4)
    check("max_completion_tokens", chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=3).usage.completion_tokens <= 3)

    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"town\": \"Rome\"}"}}
    history = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "c1", "content": "Sunny."}]
    check("a conversation with tools goes on", chat(messages=history, tools=[], tool_choice="auto").choices[0].message.content)
    check("modalities of text alone", chat(modalities=["text"]).choices[0].message.content is not None)
    raises(openai.BadRequestError, "a grammar", lambda: chat(extra_body={"grammar": "root ::= \"a\""}), "grammar")

    raises(openai.NotFoundError, "an unknown model", lambda: complete(model="gpt-9"), "gpt-9")
    raises(openai.BadRequestError, "a temperature out of range", lambda: complete(temperature=5), "temperature")
    raises(openai.BadRequestError, "a prompt that does not fit", lambda: complete(prompt=[5] * 100_000), "context")
    raises(openai.BadRequestError, "an unknown role", lambda: chat(messages=[{"role": "wizard", "content": "x"}]), "wizard")
    raises(openai.BadRequestError, "tools", lambda: chat(tools=[{"type": "function", "function": {"name": "f"}}]), "tools")
    raises(openai.BadRequestError, "a stream that cannot be is no stream", lambda: list(complete(stream=True, n=1000)), "n")
    stranger = openai.OpenAI(base_url=server.url + "/v1", api_key="guess", max_retries=0)
    raises(openai.AuthenticationError, "a wrong key", stranger.models.list, "API key")


def server_tokens(server, text):
    import json
    import urllib.request
    body = json.dumps({"prompt": text}).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer secret"}
    return json.load(urllib.request.urlopen(urllib.request.Request(server.url + "/tokenize", body, headers)))["tokens"]


if __name__ == "__main__":
    main()
