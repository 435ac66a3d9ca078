"""One check's browser session, and the list of checks."""

import contextlib
import os
import time

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
# How long an answer may take: a large model on a busy machine reads a prompt for a while.
ANSWER_MS = 180_000
WATCH = """
window.breaches = [];
addEventListener('securitypolicyviolation', (e) => window.breaches.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failed(message)


class Session:
    """One check's own browser context, with everything that must not happen written down."""

    def __init__(self, run, server, **options):
        self.run, self.server = run, server
        self.url = server.url if server else run.url
        self.context = run.browser.new_context(**{"viewport": DESKTOP, "accept_downloads": True, **options})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=self.url.rstrip("/"))
        self.context.set_default_timeout(run.patience_ms)
        self.context.add_init_script(WATCH)
        self.context.on("request", lambda request: self.foreign(request.url))
        self.troubles, self.allowed = [], []
        self.page = self.new_page()

    def new_page(self):
        page = self.context.new_page()
        page.on("console", lambda m: m.type in ("error", "warning") and self.troubles.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: self.troubles.append(f"error on the page: {error}"))
        return page

    def foreign(self, url):
        if not url.startswith((self.url, "blob:", "data:")):
            self.troubles.append(f"request to {url}")

    def open(self, page=None):
        page = page or self.page
        page.goto(self.url)
        if self.run.api_key and self.server is None:
            page.fill("#question-input", self.run.api_key)
            page.keyboard.press("Enter")
            self.allowed.append("401")
        self.until(
            "!['Waiting for the server', undefined].includes(document.querySelector('#welcome h2')?.textContent)",
            page=page,
        )
        return page

    def close(self):
        for page in self.context.pages:
            with contextlib.suppress(Exception):
                self.troubles += [f"policy breach: {breach}" for breach in page.evaluate("window.breaches ?? []")]
        self.context.close()
        return [trouble for trouble in self.troubles if not any(word in trouble for word in self.allowed)]

    def until(self, condition, what=None, page=None, timeout_s=None):
        """Waits for a condition. Playwright's own way evaluates a string in the page, which the policy forbids."""
        end = time.monotonic() + (timeout_s or self.run.patience_ms / 1000)
        while not (page or self.page).evaluate(condition):
            expect(time.monotonic() < end, f"waited in vain for {what or condition}")
            time.sleep(0.02)

    # What a person does

    def send(self, text, wait=True):
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")
        if wait:
            self.finished()

    def finished(self):
        self.page.wait_for_selector("#stop", state="hidden", timeout=ANSWER_MS)

    def limit(self, tokens, temperature=None):
        """Short answers, through the settings sheet as a person sets them."""
        self.page.click("#open-settings")
        self.page.fill("#set-max_tokens", str(tokens))
        if temperature is not None:
            self.page.fill("#set-temperature", str(temperature))
        self.page.keyboard.press("Escape")

    def answer(self):
        return self.page.locator(".turn.assistant .body").last.text_content()

    def stats(self):
        return self.page.locator(".turn.assistant .stats").last.text_content()

    def shot(self, name):
        if self.run.screenshots:
            self.page.screenshot(path=os.path.join(self.run.screenshots, f"{name}.png"))


CHECKS = []


def check(title, mock_only=False, needs=None, **options):
    """Registers a check. `needs` is 'chat' where a model without a chat template has nothing to show."""

    def register(function):
        CHECKS.append((title, function, mock_only, needs, options))
        return function

    return register
