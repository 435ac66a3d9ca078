"""Load on the server: throughput and latencies for 1, 4, 16, 64 clients, and what a long prompt does to streams.

    python scripts/load_server.py --serve MODEL [--peer 'COMMAND with {port}'] [--clients 1,4,16,64] [--long 3000]

Every client sends one request after the other (prompts of 20 to 300 tokens, 16 to 64 new ones). A peer, for instance
`python -m llama_cpp.server --model model.gguf --port {port}`, is loaded the same way, in turns.
"""

import argparse
import asyncio
import random
import shlex
import time

from serving import ROOT, Server, cpu, free_port, percentile, stream


def request(seed, tokens):
    """The request of a number: the same for every server."""
    draw = random.Random(seed)
    words = ["tree", "river", "house", "red", "small", "ran", "found", "the", "and", "day", "Tom", "was"]
    prompt = " ".join(draw.choice(words) for _ in range(draw.randint(20, 300)))
    # llama.cpp's server knows `ignore_eos` too: both write as many tokens.
    new = draw.randint(tokens // 4, tokens)
    return {"prompt": prompt, "max_tokens": new, "seed": seed, "temperature": 0.8, "ignore_eos": True}


async def load(port, clients, requests, tokens):
    queue = list(range(requests))
    results, failed = [], 0

    async def client():
        nonlocal failed
        while queue:
            status, times, written = await stream(port, request(queue.pop(), tokens))
            if status != 200 or not times:
                failed += 1
            else:
                results.append((times, written))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started, results, failed


def report(name, clients, seconds, results, failed):
    first = [times[0] * 1e3 for times, _ in results]
    gaps = [(b - a) * 1e3 for times, _ in results for a, b in zip(times, times[1:])]
    tokens = sum(written for _, written in results)
    three = lambda values: " / ".join(f"{percentile(values, share):.0f}" for share in (0.5, 0.95, 0.99))
    print(f"| {name} | {clients} | {tokens / seconds:.1f} | {three(first)} | {three(gaps)} | {failed} of {len(results) + failed} |",
          flush=True)


async def long_prompt(port, tokens, body):
    """The worst gap of 8 streams while a long prompt arrives."""
    began = time.perf_counter()
    bodies = [{"prompt": f"Stream {i} " + "went on " * 8, "max_tokens": body["stream_tokens"], "ignore_eos": True, "seed": i}
              for i in range(8)]
    streams = [asyncio.create_task(stream(port, body)) for body in bodies]
    await asyncio.sleep(body["delay"])
    arrived = time.perf_counter() - began
    status, times, _ = await stream(port, {"prompt": [10 + i % 200 for i in range(tokens)], "max_tokens": 4, "ignore_eos": True})
    long_first = times[0] if times else float("nan")
    results = await asyncio.gather(*streams)
    # Only what the streams went through while the long prompt was there.
    gaps = [b - a for _, times, _ in results for a, b in zip(times, times[1:]) if arrived < b and a < arrived + long_first]
    good = status == 200 and all(state == 200 for state, _, _ in results) and gaps
    return max(gaps, default=0) * 1e3, percentile(gaps, 0.5) * 1e3, long_first * 1e3, good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", required=True, metavar="MODEL")
    parser.add_argument("--binary", default=ROOT / "target/release/bitnet-infer")
    parser.add_argument("--peer", help="command of another server, with {port}")
    parser.add_argument("--peer-ready", default="/v1/models")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--requests", type=int, default=3, help="requests of each client")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a request at most")
    parser.add_argument("--long", type=int, default=3000, help="tokens of the long prompt (0: leave this out)")
    parser.add_argument("--stream-tokens", type=int, default=200)
    parser.add_argument("--delay", type=float, default=2.0, help="seconds before the long prompt arrives")
    args = parser.parse_args()
    print(cpu())
    print("| server | clients | tok/s | first token ms p50 / p95 / p99 | between tokens ms p50 / p95 / p99 | failed |")
    print("|---|---|---|---|---|---|")
    for clients in map(int, args.clients.split(",")):
        for name in ["ours", "peer"] if args.peer else ["ours"]:
            if name == "ours":
                server = Server.bitnet(args.binary, args.serve, "--parallel", 16)
            else:
                port = free_port()
                server = Server(shlex.split(args.peer.replace("{port}", str(port))), port, ready=args.peer_ready)
            try:
                outcome = asyncio.run(load(server.port, clients, clients * args.requests, args.tokens))
                report(name, clients, *outcome)
            finally:
                server.stop(60)
    if args.long:
        print(f"\na prompt of {args.long} tokens while 8 streams run: worst gap of the streams, their median gap, first token of the long one")
        for prefill in ["whole", "100ms", "50ms"]:
            server = Server.bitnet(args.binary, args.serve, "--prefill", prefill)
            try:
                body = {"stream_tokens": args.stream_tokens, "delay": args.delay}
                worst, median, first, good = asyncio.run(long_prompt(server.port, args.long, body))
                print(f"--prefill {prefill}: {worst:.0f} ms, {median:.0f} ms, {first:.0f} ms{'' if good else ' (a request failed, or the streams had ended)'}", flush=True)
            finally:
                server.stop(60)


if __name__ == "__main__":
    main()
