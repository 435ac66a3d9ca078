"""What the scripts around `bitnet-infer serve` share: a server of their own, its metrics, and streams read by hand."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process that serves a model on a port of its own."""

    def __init__(self, command, port, ready="/health", quiet=True):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        output = subprocess.DEVNULL if quiet else None
        self.process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(self.url + ready, timeout=5).read()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server did not start: {' '.join(str(part) for part in command)}")
                time.sleep(0.1)

    @classmethod
    def bitnet(cls, binary, model, *options, quiet=True):
        port = free_port()
        return cls([binary, "serve", model, "--port", port, *options], port, quiet=quiet)

    def stop(self, grace=30):
        """Seconds from SIGTERM to the end."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(grace)
        return time.monotonic() - started

    def memory_mb(self):
        """Resident memory."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024

    def threads_and_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task")), len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def get(self, path):
        return urllib.request.urlopen(self.url + path, timeout=60).read().decode()

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=600))

    def metric(self, name):
        """The value of a metric, with its labels as they are printed; 0 if it was never counted."""
        found = re.search(rf"^{re.escape('bitnet_' + name)} (\S+)$", self.get("/metrics"), re.M)
        return float(found[1]) if found else 0.0

    def settle(self, seconds=60):
        """Waits until nothing runs and nothing waits; returns whether that came to pass."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.metric("requests_running") == 0 and self.metric("requests_waiting") == 0:
                return True
            time.sleep(0.05)
        return False


async def stream(port, body, path="/v1/completions"):
    """Streams a completion. Returns the status, the times of events with text from the start of the request, and the number of
    new tokens by the server's own count."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    payload = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
    await writer.drain()
    status = int((await reader.readline()).split()[1])
    times, tokens, done = [], 0, False
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            if any(choice.get("text") for choice in event.get("choices", [])):
                times.append(time.perf_counter() - started)
    writer.close()
    return status if done or status != 200 else 0, times, tokens


def percentile(values, share):
    """The value below which `share` of the sorted values lie."""
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def cpu():
    text = Path("/proc/cpuinfo").read_text()
    name, family, model = (re.search(rf"^{key}\s*: (.*)$", text, re.M) for key in ("model name", "cpu family", "model"))
    return f"{name[1]} (family {family[1]}, model {model[1]}), {os.cpu_count()} cores"
