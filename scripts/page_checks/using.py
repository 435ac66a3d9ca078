"""Token probabilities, scrolling, size, phone, keyboard, screen reader and pictures."""

import time

from .session import ANSWER_MS, PHONE, Skipped, check, expect

# Token probabilities


@check("shows token probabilities by pointer and by keyboard", needs="chat")
def probabilities(s):
    s.open()
    s.limit(40)
    s.send("Tell me about weights.")
    s.page.click("#probabilities")
    s.page.wait_for_selector("[role=option].token")
    tokens = s.page.locator(".turn.assistant [role=option]")
    expect(s.run.real or tokens.count() == 40, f"{tokens.count()} tokens")
    tokens.nth(2).hover()
    s.page.wait_for_selector("#token-popover:not([hidden])")
    expect("%" in s.page.inner_text("#token-popover"), "no probabilities in the popover")
    rows = s.page.locator("#token-popover tbody tr").count()
    expect(5 <= rows <= 6, f"{rows} alternatives")
    s.page.locator("#token-popover").hover()
    time.sleep(0.3)
    expect(s.page.locator("#token-popover").is_visible(), "the pointer cannot go onto the popover")
    s.shot("token-probabilities")
    s.page.mouse.move(5, 5)
    s.page.wait_for_selector("#token-popover", state="hidden")
    tokens.first.focus()
    s.page.wait_for_selector("#token-popover:not([hidden])")
    s.page.keyboard.press("ArrowRight")
    described = s.page.evaluate("document.activeElement.getAttribute('aria-describedby')")
    expect(described == "token-popover", "the token is not described by the popover")
    expect(s.page.locator(".turn.assistant [role=option][tabindex='0']").count() == 1, "more than one tab stop")
    s.page.keyboard.press("Escape")
    expect(not s.page.locator("#token-popover").is_visible(), "Escape did not close the popover")
    expect("perplexity" in s.stats(), f"no perplexity in {s.stats()!r}")
    s.page.reload()
    s.page.wait_for_selector("#conversations .open")
    s.page.click("#conversations .open")
    s.page.wait_for_selector("[role=option].token")


@check("asks for no probabilities when told so", mock_only=True)
def no_record(s):
    s.open()
    s.page.click("#open-settings")
    s.page.uncheck("#record")
    s.page.keyboard.press("Escape")
    s.send("Hello")
    expect("logprobs" not in s.server.requests[-1][1], "asked all the same")


# Scrolling and size


@check("follows the end, lets go when one scrolls up, and jumps back", mock_only=True)
def scrolling(s):
    s.open()
    s.send("Much [long]", wait=False)
    at_end = """(() => {
        const { scrollHeight, scrollTop, clientHeight } = document.querySelector('#scroller');
        return scrollHeight - scrollTop - clientHeight < 60;
    })()"""
    s.until("document.querySelector('#scroller').scrollTop > 100")
    expect(s.page.evaluate(at_end), "did not follow")
    s.page.mouse.move(700, 300)
    s.page.mouse.wheel(0, -400)
    s.page.wait_for_selector("#jump:not([hidden])")
    top = s.page.evaluate("document.querySelector('#scroller').scrollTop")
    time.sleep(0.5)
    expect(
        abs(s.page.evaluate("document.querySelector('#scroller').scrollTop") - top) < 4, "was pulled down while reading"
    )
    s.page.click("#jump")
    s.until(at_end)
    s.page.wait_for_selector("#jump", state="hidden")
    s.finished()
    expect(s.page.evaluate(at_end), "the end is not in view")


@check("stays quick with 500 messages", mock_only=True)
def long_conversation(s):
    s.open()
    s.page.evaluate("""() => {
        const messages = [];
        for (let i = 0; i < 250; i++) {
            const text = `Answer **${i}**: a sum with \\`scale\\`.\\n\\n- add\\n- subtract\\n\\n`
                + 'Some more text follows here. '.repeat(12);
            const stats = { finish: 'stop', promptTokens: 3000, completionTokens: 90, perSecond: 41.3,
                firstTokenMs: 210 };
            messages.push({ role: 'user', content: `Question ${i} about ternary weights, with a few more words.` });
            messages.push({ role: 'assistant', content: text, stats });
        }
        const id = '0'.repeat(18);
        localStorage.setItem('bitnet.conversation.' + id, JSON.stringify({ id, title: 'A long talk', named: true,
            mode: 'chat',
            created: Date.now(), updated: Date.now(), system: '', messages, segments: [] }));
    }""")
    s.page.reload()
    s.page.wait_for_selector("#conversations .open")
    opened = s.page.evaluate("""() => new Promise((done) => {
        const start = performance.now();
        document.querySelector('#conversations .open').click();
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
    })""")
    s.page.evaluate("""() => {
        window.frames_ms = [];
        window.long_ms = [];
        const observer = new PerformanceObserver((list) => list.getEntries().forEach((e) => long_ms.push(e.duration)));
        observer.observe({ entryTypes: ['longtask'] });
        let last = performance.now();
        (function frame(now) { frames_ms.push(now - last); last = now; requestAnimationFrame(frame); })(last);
    }""")
    # Processor time that the page's process took, not time that passed: other work on the machine does not count.
    meter = s.run.browser.new_browser_cdp_session()

    def busy_ms():
        processes = meter.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(process["cpuTime"] for process in processes if process["type"] == "renderer") * 1000

    before = busy_ms()
    s.server.delay_s = 0.004
    s.send("And one more [long]")
    s.server.delay_s = 0.012
    frames = sorted(s.page.evaluate("window.frames_ms.slice(10)"))
    worst = max(s.page.evaluate("window.long_ms") or [0])
    middle, high = frames[len(frames) // 2], frames[int(len(frames) * 0.95)]
    token_ms = (busy_ms() - before) / 732
    s.note = (
        f"opened in {opened:.0f} ms; frames {middle:.0f} ms in the middle, 95 % under {high:.0f} ms, "
        f"longest task {worst:.0f} ms; {token_ms:.2f} ms of processor a token"
    )
    expect(s.page.locator(".turn").count() == 502, f"{s.page.locator('.turn').count()} messages")
    expect(token_ms < 8, s.note)
    s.page.evaluate("document.querySelector('#scroller').scrollTop -= 700")
    s.page.wait_for_timeout(200)
    s.shot("long-conversation")


# Phone, keyboard, screen reader


@check(
    "fits a phone: no sideways scrolling, the list is a drawer",
    viewport=PHONE,
    has_touch=True,
    is_mobile=True,
    device_scale_factor=2,
)
def phone(s):
    s.open()
    s.shot("phone-empty")
    if s.page.locator("#message").is_visible():
        s.limit(60)
        s.page.fill("#message", "Show me [markdown]")
        s.page.press("#message", "Enter")
        expect(s.page.locator(".turn").count() == 0, "Enter sends where there is no Shift+Enter")
        s.page.click("#send")
        s.finished()
    wide = """document.documentElement.scrollWidth > innerWidth
        || document.querySelector('#scroller').scrollWidth > document.querySelector('#scroller').clientWidth"""
    expect(not s.page.evaluate(wide), "scrolls sideways")
    small = s.page.evaluate("""[...document.querySelectorAll('button')]
        .filter((b) => b.checkVisibility({ visibilityProperty: true }) && !b.closest('.code, [inert]'))
        .filter((b) => Math.min(b.getBoundingClientRect().height, b.getBoundingClientRect().width) < 32)
        .map((b) => b.id || b.className)""")
    expect(not small, f"too small for a finger: {small}")
    s.shot("phone")
    s.page.set_viewport_size({"width": 320, "height": 560})
    expect(not s.page.evaluate(wide), "scrolls sideways at 320 pixels")
    s.page.set_viewport_size(PHONE)
    s.page.click("#menu")
    expect(s.page.evaluate("document.querySelector('#main').inert"), "what is behind the drawer can be reached")
    s.page.wait_for_timeout(300)
    s.shot("phone-drawer")
    s.page.keyboard.press("Escape")
    s.page.wait_for_selector("#sidebar", state="hidden")
    expect(s.page.evaluate("document.activeElement.id") == "menu", "the focus did not come back")
    s.page.click("#menu")
    s.page.touchscreen.tap(380, 400)
    s.page.wait_for_selector("#sidebar", state="hidden")


@check("can be used by keyboard alone, in a sensible order, with the focus seen", needs="chat")
def keyboard(s):
    s.open()
    s.limit(5)
    s.send("By keys")
    s.page.focus(".skip")
    order, unseen = [], []
    for _ in range(40):
        now = s.page.evaluate("""() => {
            const e = document.activeElement;
            if (e === document.body) return ['', true]; // Round the end of the page.
            const name = e.id || e.getAttribute('aria-label') || e.value || e.textContent.trim();
            const style = getComputedStyle(e);
            const around = e.closest('#composer, label, .segmented')?.querySelector('span') ?? e;
            const seen = style.outlineStyle !== 'none' || getComputedStyle(around).outlineStyle !== 'none'
                || (e.matches('textarea') && getComputedStyle(e.closest('form, section')).boxShadow !== 'none');
            return [name, seen];
        }""")
        if now[0] in order or now[0] == "":
            break
        order.append(now[0])
        if not now[1]:
            unseen.append(now[0])
        s.page.keyboard.press("Tab")
    for earlier, later in [
        ("new", "export"),
        ("export", "probabilities"),
        ("probabilities", "open-settings"),
        ("open-settings", "Edit message"),
        ("Edit message", "Regenerate answer"),
        ("Regenerate answer", "message"),
    ]:
        expect(earlier in order and later in order, f"{earlier} or {later} is not reached: {order}")
        expect(order.index(earlier) < order.index(later), f"{earlier} after {later}: {order}")
    expect(not unseen, f"no focus mark on {unseen}")
    s.page.click("#open-settings")
    for _ in range(40):
        s.page.keyboard.press("Tab")
        inside = s.page.evaluate(
            "document.activeElement === document.body"
            " || document.querySelector('#settings').contains(document.activeElement)"
        )
        expect(inside, "the focus left the sheet")


@check("tells screen readers the beginning and the end, not every token", mock_only=True)
def reader(s):
    s.open()
    s.page.evaluate("""() => {
        window.said = [];
        const announcer = document.querySelector('#announcer');
        new MutationObserver(() => said.push(announcer.textContent)).observe(announcer, { childList: true });
    }""")
    s.send("Speak")
    said = s.page.evaluate("window.said")
    expect(len(said) == 2 and "answering" in said[0] and "complete, 60 tokens" in said[1], f"{said}")
    live = s.page.evaluate(
        "[...document.querySelectorAll('[aria-live], [role=log], [role=status], [role=alert]')]"
        ".some((e) => e.contains(document.querySelector('.turn')))"
    )
    expect(not live, "the messages stand in a live region")


@check("moves nothing for those who want no motion", mock_only=True, reduced_motion="reduce")
def still(s):
    s.open()
    s.send("Slowly [slow]", wait=False)
    s.page.wait_for_selector(".waiting-mark")
    moving = s.page.evaluate("document.getAnimations().length")
    expect(moving == 0, f"{moving} animations")
    s.page.click("#stop")


@check("has no barrier that axe-core finds, in both themes", bypass_csp=True, reduced_motion="reduce")
def accessibility(s):
    source = s.run.axe()
    s.open()
    found = {}

    def look(where):
        s.page.evaluate(source)
        for scheme in ("light", "dark"):
            s.page.emulate_media(color_scheme=scheme)
            result = s.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
            for violation in result["violations"]:
                for node in violation["nodes"]:
                    found.setdefault(
                        (violation["id"], node["target"][0] if node["target"] else ""),
                        f"{where}, {scheme}: {node['failureSummary']}",
                    )

    look("empty")
    chat = s.page.locator("#message").is_visible() and s.page.locator(".explain").count() == 0
    if chat:
        s.limit(200)
        s.send("Show me [markdown]")
        look("answer")
    s.page.click("#open-settings")
    look("settings")
    s.page.keyboard.press("Escape")
    if chat:
        s.page.click("#probabilities")
        s.page.locator("[role=option]").nth(1).focus()
        look("probabilities")
        s.page.keyboard.press("Escape")
        s.page.get_by_role("button", name="Edit message").click()
        look("editor")
        s.page.keyboard.press("Escape")
        s.page.get_by_role("button", name="Delete Show me").click()
        look("question")
        s.page.keyboard.press("Escape")
        if s.server:
            s.allowed.append("429")
            s.send("And [error 429]")
            look("error")
    s.page.get_by_text("Complete", exact=True).click()
    look("complete")
    s.page.set_viewport_size(PHONE)
    look("phone")
    s.page.click("#menu")
    look("drawer")
    expect(not found, "\n      ".join(f"{rule} at {target}: {text}" for (rule, target), text in found.items()))


@check("pictures of a running answer and of the dark theme", needs="chat", color_scheme="light")
def pictures(s):
    if not s.run.screenshots:
        raise Skipped("no --screenshots")
    s.open()
    s.send("How does a ternary layer work? [markdown]" if s.server else "How does a ternary layer work?", wait=False)
    s.until(
        "document.querySelector('.turn.assistant .body')?.textContent.length > 150"
        " || document.querySelector('#stop').hidden",
        timeout_s=ANSWER_MS / 1000,
    )
    s.shot("streaming")
    s.finished()
    s.shot("answer")
    s.page.emulate_media(color_scheme="dark")
    s.page.wait_for_timeout(250)
    s.shot("answer-dark")
    s.page.click("#probabilities")
    s.page.locator("[role=option]").nth(3).hover()
    s.page.wait_for_selector("#token-popover:not([hidden])")
    s.shot("token-probabilities-dark")
