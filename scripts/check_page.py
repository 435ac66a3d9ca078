#!/usr/bin/env python3
"""Drives the chat page in headless Chromium and checks what it promises.

    python3 scripts/check_page.py --mock [--screenshots DIR]
    python3 scripts/check_page.py --serve MODEL --binary target/release/bitnet-infer [--screenshots DIR]
    python3 scripts/check_page.py --url http://127.0.0.1:8080/ [--api-key KEY]

Needs Python's playwright (`pip install playwright`) and Chromium (`apt-get install chromium`; its path with
--chromium). `--mock` plays the server (page_checks/mock.py): only there do answers come slowly, break off or fail on
demand, so a real server skips those checks. `--only WORD` runs the checks whose name has the word. The accessibility
check uses axe-core: from --axe FILE, else from npm if npm is there, else it is skipped with a word. Every check fails
on an error in the console, a breach of the content security policy, or a request to another origin. Prints a line for
each check and leaves with 1 if any failed.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import urllib.request

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sys.exit("Python's playwright is missing: pip install playwright (its own browsers are not needed)")

from page_checks import answers, keeping, using  # noqa: F401  (each registers its checks)
from page_checks.mock import Mock
from page_checks.session import CHECKS, Failed, Session, Skipped

PLACES = [
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
]


class Run:
    """The browser, the server and the tally."""

    def __init__(self, options, browser, url, scratch):
        self.browser, self.url, self.scratch = browser, url, scratch
        self.api_key, self.screenshots = options.api_key, options.screenshots
        self.real = url is not None
        self.axe_file = options.axe
        self.patience_ms = options.patience * 1000
        self.passed, self.failed, self.skipped = 0, [], 0
        self.chat = True

    def one(self, title, function, mock_only, needs, options):
        if (mock_only and self.real) or (needs == "chat" and not self.chat):
            self.skipped += 1
            return print(f"skip  {title}: {'needs the mock server' if mock_only else 'the model has no chat template'}")
        session = Session(self, None if self.real else Mock().start(), **options)
        started = time.monotonic()
        problem = None
        try:
            function(session)
        except Skipped as reason:
            self.skipped += 1
            session.close()
            return print(f"skip  {title}: {reason}")
        except Failed as failure:
            problem = str(failure)
        except Exception:
            problem = traceback.format_exc(limit=-3)
        if problem and self.screenshots:
            with contextlib.suppress(Exception):
                session.page.screenshot(path=os.path.join(self.screenshots, f"failed-{function.__name__}.png"))
        troubles = session.close()
        if not problem and troubles:
            problem = "; ".join(troubles)
        if problem:
            self.failed.append(title)
            return print(f"FAIL  {title}\n      {problem}")
        self.passed += 1
        note = getattr(session, "note", "")
        print(f"ok    {title} ({time.monotonic() - started:.1f} s){': ' + note if note else ''}")

    def axe(self):
        """The source of axe-core, which runs in the page under test and is no part of it."""
        path = self.axe_file or os.path.join(tempfile.gettempdir(), "axe-core", "package", "axe.min.js")
        if not os.path.exists(path):
            if not shutil.which("npm"):
                raise Skipped("axe-core is not there: give --axe FILE, or install npm")
            folder = os.path.dirname(os.path.dirname(path))
            os.makedirs(folder, exist_ok=True)
            done = subprocess.run(["npm", "pack", "axe-core", "--silent"], cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                raise Skipped(f"npm pack axe-core failed: {done.stderr.strip()[-200:]}")
            with tarfile.open(os.path.join(folder, done.stdout.split()[-1])) as archive:
                archive.extract("package/axe.min.js", folder, filter="data")
        with open(path, encoding="utf-8") as file:
            return file.read()


@contextlib.contextmanager
def serving(options):
    """The address of the server to be checked; None for the mock, of which every check has its own."""
    if not options.serve:
        yield options.url
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    server = subprocess.Popen([options.binary, "serve", options.serve, "--port", str(port)])
    try:
        for _ in range(1200):
            if server.poll() is not None:
                sys.exit(f"the server ended with code {server.returncode} before it was ready")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url + "health", timeout=2).close()
                break
            time.sleep(0.1)
        else:
            sys.exit("the server was not ready within two minutes")
        yield url
    finally:
        server.terminate()
        server.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--mock", action="store_true")
    which.add_argument("--url")
    which.add_argument("--serve", metavar="MODEL")
    parser.add_argument("--binary", default="target/release/bitnet-infer")
    parser.add_argument("--api-key")
    parser.add_argument("--chromium", default=next((place for place in PLACES if os.path.exists(place)), None))
    parser.add_argument("--axe", metavar="FILE", help="axe.min.js")
    parser.add_argument("--screenshots", metavar="DIR")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--patience", type=int, default=60, metavar="SECONDS", help="for one step, on a busy machine")
    options = parser.parse_args()
    if not options.chromium or not os.path.exists(options.chromium):
        sys.exit("Chromium is missing: apt-get install chromium, or name one with --chromium PATH")
    if options.screenshots:
        os.makedirs(options.screenshots, exist_ok=True)
    url = options.url and options.url.rstrip("/") + "/"
    options.url = url
    with serving(options) as url, tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        # Chromium's own sandbox refuses to start as root, as in a container.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=options.chromium, args=arguments)
        run = Run(options, browser, url, scratch)
        if run.real:
            first = Session(run, None)
            first.open()
            first.page.get_by_text("Chat", exact=True).click()
            run.chat = first.page.locator(".explain").count() == 0
            first.close()
        for title, *rest in CHECKS:
            if options.only in title or options.only in rest[0].__name__:
                run.one(title, *rest)
        browser.close()
    for title in run.failed:
        print(f"failed: {title}")
    print(f"{run.passed} passed, {len(run.failed)} failed" + (f", {run.skipped} skipped" if run.skipped else ""))
    sys.exit(1 if run.failed else 0)


if __name__ == "__main__":
    main()
