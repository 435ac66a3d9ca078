"""Loading, chatting, streams and what goes wrong in them, completing a text."""

import time

from .mock import Mock
from .session import ANSWER_MS, Skipped, check, expect

# Loading and looks


@check("loads, names the model and its context")
def loads(s):
    s.open()
    expect(s.page.title().endswith("BitNet"), f"title {s.page.title()!r}")
    expect(s.page.inner_text("#server") not in ("", "Connecting…", "Not connected"), "the side bar names no model")
    s.page.wait_for_selector("#meter")
    s.shot("empty")


@check("dark by the system and by the button, and the choice lasts", color_scheme="dark")
def themes(s):
    s.open()
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = s.page.evaluate(paper)
    s.shot("empty-dark")
    s.page.click("#theme")
    expect(s.page.evaluate(paper) != dark, "the light theme looks like the dark one")
    expect("light" in s.page.inner_text("#theme"), "the button does not name the theme")
    s.page.reload()
    s.page.wait_for_selector("#welcome h2")
    expect(s.page.evaluate("document.documentElement.dataset.theme") == "light", "the choice was forgotten")


@check("serves every part with a strict policy")
def headers(s):
    response = s.page.goto(s.url)
    policy = response.headers.get("content-security-policy", "")
    expect("default-src 'none'" in policy and "unsafe" not in policy, f"policy {policy!r}")
    expect(response.headers.get("x-content-type-options") == "nosniff", "no nosniff")
    s.page.wait_for_selector("#welcome h2")
    inline = s.page.evaluate("document.querySelectorAll('[style*=url], [onclick], script:not([src]), style').length")
    expect(inline == 0, "inline script or style")


# Chat


@check("streams an answer, with times and counts below it", needs="chat")
def streams(s):
    s.open()
    s.limit(48)
    s.page.evaluate("""() => {
        window.lengths = new Set();
        const body = () => document.querySelector('.turn.assistant .body');
        new MutationObserver(() => lengths.add(body()?.textContent.length))
            .observe(document.querySelector('#thread'), { childList: true, characterData: true, subtree: true });
    }""")
    s.send("Tell me about ternary weights.")
    steps = s.page.evaluate("window.lengths.size")
    expect(s.run.real or steps > 5, f"the text grew in {steps} steps")
    for word in ("first token", "token", "prompt"):
        expect(word in s.stats(), f"{word!r} is not in {s.stats()!r}")
    expect(s.run.real or "tokens/s" in s.stats(), f"no speed in {s.stats()!r}")
    words = s.page.inner_text("#meter .words")
    expect(" of " in words, f"the context meter says {words!r}")
    expect(int(s.page.get_attribute("#meter", "aria-valuenow")) > 0, "the meter's value is not set")


@check("asks as the API wants to be asked", mock_only=True)
def asks(s):
    s.open()
    s.page.click("#open-settings")
    s.page.fill("#system-prompt", "Be brief.")
    for name, value in [
        ("temperature", "0.5"),
        ("top_p", "0.9"),
        ("top_k", "20"),
        ("min_p", "0.1"),
        ("repetition_penalty", "1.1"),
        ("seed", "7"),
        ("max_tokens", "5"),
    ]:
        s.page.fill(f"#set-{name}", value)
    s.page.keyboard.press("Escape")
    s.send("Hello")
    path, body, _ = s.server.requests[-1]
    wanted = {
        "model": "bitnet-b1.58-2b-4t",
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 7,
        "max_tokens": 5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    }
    expect(path == "/v1/chat/completions", path)
    expect(body == wanted, f"sent {body}, expected {wanted}")
    expect("ended at the token limit" in s.stats(), f"the limit is not told: {s.stats()!r}")
    expect(s.page.locator(".turn.system").count() == 1, "the system prompt is not shown")


@check("calls a full context full, and goes on without the oldest turns", mock_only=True)
def full(s):
    s.open()
    for text in ["one", "two", "three", "four [full]"]:
        s.send(text)
    expect(len(s.server.requests[-1][1]["messages"]) == 7, "the last question was not sent with all before it")
    expect("the context is full" in s.stats(), f"{s.stats()!r}")
    expect("token limit" not in s.stats(), f"{s.stats()!r}")
    meter = s.page.inner_text("#meter .words")
    expect(meter.endswith(", full"), f"{meter!r}")
    s.shot("full")
    s.page.get_by_role("button", name="Go on without the oldest turns").click()
    s.finished()
    said = [message["content"] for message in s.server.requests[-1][1]["messages"] if message["role"] == "user"]
    expect(said == ["three", "four [full]"], f"{said}")
    expect(s.page.locator(".turn").count() == 8, "what is left out is no longer shown")
    expect("4 messages" in s.page.inner_text(".skipped"), "nothing tells what is left out")
    s.page.reload()
    s.page.wait_for_selector(".skipped")
    s.page.get_by_role("button", name="Go on without the oldest turns").click()
    s.finished()
    said = [message["content"] for message in s.server.requests[-1][1]["messages"]]
    expect(said == ["four [full]"], f"{said}")
    expect(s.page.get_by_role("button", name="Go on without").count() == 0, "there is nothing more to leave out")


@check("offers the same where the server refuses a conversation as too long", mock_only=True)
def too_long(s):
    s.allowed.append("400")
    s.open()
    s.send("one")
    s.send("two [error 400]")
    s.page.get_by_role("button", name="Go on without the oldest turns").click()
    s.finished()
    said = [message["content"] for message in s.server.requests[-1][1]["messages"]]
    expect(said == ["two [error 400]"], f"{said}")


@check("Enter sends, Shift+Enter begins a line, an empty message goes nowhere", needs="chat")
def enter(s):
    s.open()
    s.limit(4)
    s.page.focus("#message")
    s.page.keyboard.press("Enter")
    expect(s.page.locator(".turn").count() == 0, "an empty message was sent")
    s.page.keyboard.type("one")
    s.page.keyboard.press("Shift+Enter")
    s.page.keyboard.type("two")
    s.page.keyboard.press("Enter")
    expect(s.page.locator(".turn.user .body").inner_text() == "one\ntwo", "the message lost its line")
    s.finished()


@check("stops by the button and by Escape, and keeps what has come", mock_only=True)
def stops(s):
    s.open()
    for press in (lambda: s.page.click("#stop"), lambda: s.page.keyboard.press("Escape")):
        before = s.server.cancelled
        s.send("Tell me much [slow] [long]", wait=False)
        s.until(
            "document.querySelectorAll('.turn.assistant .body')"
            "[document.querySelectorAll('.turn.assistant').length - 1]?.textContent.length > 20"
        )
        press()
        s.finished()
        length = len(s.answer())
        expect(length > 20 and "stopped" in s.stats(), f"{length} characters, {s.stats()!r}")
        time.sleep(0.4)
        expect(len(s.answer()) == length, "the text grew after the stop")
        expect(s.server.cancelled > before, "the server was not told")
    s.send("Stop at once [wait]", wait=False)
    s.page.wait_for_selector(".waiting-mark")
    s.page.click("#stop")
    s.finished()
    expect("before the first token" in s.answer(), f"{s.answer()!r}")


@check("stops a real answer", needs="chat")
def stops_real(s):
    if not s.run.real:
        raise Skipped("only for a real server")
    s.open()
    s.send("Write a long story.", wait=False)
    s.until(
        "document.querySelector('.turn.assistant .body')?.textContent.length > 10"
        " || document.querySelector('#stop').hidden",
        timeout_s=ANSWER_MS / 1000,
    )
    if s.page.locator("#stop").is_visible():
        s.page.keyboard.press("Escape")
        s.page.wait_for_selector("#stop", state="hidden", timeout=3000)


@check("regenerates an answer", needs="chat")
def regenerates(s):
    s.open()
    s.limit(12)
    s.send("Say something.")
    s.page.locator(".turn.assistant").get_by_role("button", name="Regenerate answer").click()
    s.page.wait_for_selector("#stop", state="hidden", timeout=ANSWER_MS)
    expect(s.page.locator(".turn").count() == 2, f"{s.page.locator('.turn').count()} messages")
    if s.server:
        expect(len(s.server.requests) == 2, "no second request")
        expect(s.server.requests[0][1]["messages"] == s.server.requests[1][1]["messages"], "another prompt")


@check("edits a question: drops what follows and asks again", needs="chat")
def edits_question(s):
    s.open()
    s.limit(6)
    s.send("First question")
    s.send("Second question")
    s.page.locator(".turn.user").first.get_by_role("button", name="Edit message").click()
    expect("3 later messages" in s.page.inner_text(".editor"), "does not say what is lost")
    s.page.fill(".editor textarea", "Another question")
    s.page.click(".editor button[type=submit]")
    s.finished()
    expect(s.page.locator(".turn").count() == 2, f"{s.page.locator('.turn').count()} messages")
    expect(s.page.inner_text("#title") == "Another question", "the title stayed behind")
    if s.server:
        expect(
            s.server.requests[-1][1]["messages"] == [{"role": "user", "content": "Another question"}], "wrong prompt"
        )


@check("edits an answer, which then counts as said", needs="chat")
def edits_answer(s):
    s.open()
    s.limit(6)
    s.send("What is the capital of France?")
    s.page.get_by_role("button", name="Edit answer").click()
    s.page.fill(".editor textarea", "It is Lyon.")
    s.page.keyboard.press("Escape")
    expect("Lyon" not in s.answer(), "Escape did not cancel")
    s.page.get_by_role("button", name="Edit answer").click()
    s.page.fill(".editor textarea", "It is Paris.")
    s.page.keyboard.press("Control+Enter")
    s.until("document.querySelector('.turn.assistant .body')?.textContent === 'It is Paris.'")
    expect("edited" in s.stats(), "is not marked")
    s.send("Are you sure?")
    if s.server:
        sent = [m["content"] for m in s.server.requests[-1][1]["messages"]]
        expect(sent == ["What is the capital of France?", "It is Paris.", "Are you sure?"], f"{sent}")


@check("copies answers and code", mock_only=True)
def copies(s):
    s.open()
    s.send("Show me [markdown]")
    s.page.get_by_role("button", name="Copy code").click()
    code = s.page.evaluate("navigator.clipboard.readText()")
    expect(code.startswith("def dot(") and code.endswith("x))"), f"{code!r}")
    s.page.get_by_role("button", name="Copy answer").click()
    text = s.page.evaluate("navigator.clipboard.readText()")
    expect(text.startswith("## How") and "```python" in text, f"{text[:40]!r}")


@check("renders Markdown the same streamed and at once", mock_only=True)
def markdown(s):
    s.open()
    s.send("Show me [markdown]")
    html = "document.querySelector('.turn.assistant .body').innerHTML"
    streamed = s.page.evaluate(html)
    for selector, n in [
        ("h3", 1),
        ("strong", 3),
        ("em", 1),
        ("ol > li", 3),
        ("ol ul > li", 2),
        ("pre code", 1),
        ("tbody tr", 2),
        ("blockquote", 1),
        ("a[href^='https://arxiv.org']", 1),
    ]:
        found = s.page.locator(f".turn.assistant .body {selector}").count()
        expect(found == n, f"{found} of {selector}, expected {n}")
    s.page.reload()
    s.page.wait_for_selector(".turn.assistant .body")
    again = s.page.evaluate(html)
    expect(again == streamed, f"streamed:\n{streamed}\nreloaded:\n{again}")


@check("never runs what a model writes", mock_only=True)
def hostile(s):
    s.open()
    s.send("Attack <img src=x onerror=alert(1)> [html]")
    expect(s.page.evaluate("window.pwned") is None, "script ran")
    expect(s.page.locator(".turn img, .turn script, .turn b, .turn a").count() == 0, "markup became elements")
    expect("<script>window.pwned = 1</script>" in s.answer(), f"{s.answer()!r}")
    made = s.page.evaluate("""async () => {
        const { LiveMarkdown } = await import('./markdown.js');
        const texts = ['[a](javascript:alert(1))', '[a](JaVaScRiPt:alert(1))', '[a](data:text/html,x)',
                       '[a](//evil.example)', '![x](https://evil.example/x.png)', '<svg onload=alert(1)>',
                       '[<b>](https://a.example)', '> > > # <i>x'];
        return texts.map((text) => {
            const root = document.createElement('div');
            new LiveMarkdown(root).update(text);
            const links = [...root.querySelectorAll('a')].map((a) => a.protocol);
            return { bad: root.querySelectorAll('img,svg,script,b,i').length, links };
        });
    }""")
    for one in made:
        expect(one["bad"] == 0 and set(one["links"]) <= {"https:"}, f"{one}")


@check("takes hostile Markdown without getting stuck", mock_only=True)
def hostile_time(s):
    s.open()
    slow = s.page.evaluate("""async () => {
        const { LiveMarkdown } = await import('./markdown.js');
        const texts = ['*', '_', '`', '[', '**a ', '> ', '- ', '[](', '~~', '!', '1. ', '|',
                       '\\\\', '``` ', '# ', '\\n\\n- a\\n\\n', 'http://', '* * ']
            .map((part) => part.repeat(40_000 / part.length));
        const slow = [];
        for (const text of texts) {
            const start = performance.now();
            new LiveMarkdown(document.createElement('div')).update(text);
            const spent = performance.now() - start;
            if (spent > 3000) slow.push([text.slice(0, 12), Math.round(spent)]);
        }
        return slow;
    }""")
    expect(not slow, f"too slow: {slow}")


# Streams and failures


@check("reads events that are cut anywhere", mock_only=True)
def events(s):
    s.open()
    wrong = s.page.evaluate("""async () => {
        const { EventParser } = await import('./sse.js');
        const text = '\\ufeff: ping\\r\\n\\r\\ndata: {"a":"日本🦊"}\\r\\n\\r\\nevent: x\\ndata:one\\n'
            + 'data: two\\n\\n: c\\rdata: three\\r\\rid: 1\\n\\ndata: [DONE]\\n\\ndata: cut';
        const expected = JSON.stringify(['{"a":"日本🦊"}', 'one\\ntwo', 'three', '[DONE]']);
        const bytes = new TextEncoder().encode(text);
        const wrong = [];
        for (let size = 1; size <= bytes.length; size++) {
            const parser = new EventParser();
            const out = [];
            for (let i = 0; i < bytes.length; i += size) out.push(...parser.push(bytes.slice(i, i + size)));
            if (JSON.stringify(out) !== expected) wrong.push([size, JSON.stringify(out)]);
        }
        return wrong;
    }""")
    expect(not wrong, f"{wrong[:2]}")
    s.send("In pieces [split]")
    expect(s.answer().startswith("Grüße, 日本語, naïve 🦊 fox. Grüße"), f"{s.answer()!r}")


@check("says in plain words what failed, and tries again", mock_only=True)
def failures(s):
    s.allowed.append("Failed to load resource")
    s.open()
    for mark, words in [
        ("[error 429]", "Try again in 7 s"),
        ("[error 400]", "longer than the model can read"),
        ("[error 500]", "went wrong in the server"),
        ("[error 503]", "not ready yet"),
        ("[error 422]", "refused the request"),
        ("[break]", "broke off"),
        ("[stream-error]", "went wrong in the server"),
    ]:
        s.send(f"Please {mark}")
        box = s.page.locator(".turn.assistant").last.locator(".error")
        expect(words in box.text_content(), f"{mark}: {box.text_content()!r}")
    expect("The engine gave up." in box.text_content(), "the server's own words are missing")
    expect(len(s.answer()) > 5, "the part before the failure was lost")
    before = len(s.server.requests)
    box.get_by_role("button", name="Try again").click()
    s.finished()
    expect(len(s.server.requests) == before + 1, "no new try")
    s.shot("error")


@check("waits for a server that is away or loading, and goes on by itself", mock_only=True)
def away(s):
    s.allowed += ["Failed to load resource", "503"]
    blocked = "**/{props,v1/models,health}"
    s.page.route(blocked, lambda route: route.abort())
    s.page.goto(s.url)
    s.page.wait_for_selector("#trouble .error")
    expect("does not answer" in s.page.inner_text("#trouble"), s.page.inner_text("#trouble"))
    s.page.unroute(blocked)
    s.page.wait_for_selector(".starts")
    expect(s.page.locator("#trouble .error").count() == 0, "the error stayed")


@check("asks for the API key once, keeps it for the tab, asks anew if it is wrong", mock_only=True)
def keys(s):
    s.allowed.append("401")
    server = Mock(api_key="secret").start()
    s.url = server.url
    s.page.goto(s.url)
    s.page.wait_for_selector("#question[open]")
    s.page.fill("#question-input", "wrong")
    s.page.keyboard.press("Enter")
    s.page.wait_for_selector("#question[open] >> text=refused")
    s.page.fill("#question-input", "secret")
    s.page.keyboard.press("Enter")
    s.page.wait_for_selector(".starts")
    s.send("Hello")
    expect(server.requests[-1][2].get("Authorization") == "Bearer secret", "no key was sent")
    s.page.reload()
    s.page.wait_for_selector(".turn.assistant")
    s.until("document.querySelector('#server').textContent.startsWith('bitnet')")
    expect(not s.page.locator("#question").is_visible(), "asked again")
    kept = s.page.evaluate("JSON.stringify(localStorage)")
    expect("secret" not in kept, "the key is in the local storage")


@check("says when the key is not given", mock_only=True)
def no_key(s):
    s.allowed.append("401")
    s.url = Mock(api_key="secret").start().url
    s.page.goto(s.url)
    s.page.wait_for_selector("#question[open]")
    s.page.keyboard.press("Escape")
    s.page.wait_for_selector("#trouble .error")
    expect("API key" in s.page.inner_text("#trouble"), s.page.inner_text("#trouble"))
    s.page.click("#trouble button")
    s.page.wait_for_selector("#question[open]")


# Completing a text


@check("continues a text, undoes it, does it again, and shows its tokens")
def completes(s):
    s.open()
    s.limit(16)
    s.page.get_by_text("Complete", exact=True).click()
    s.page.fill("#text", "Once upon a time")
    s.page.press("#text", "Control+Enter")
    s.finished()
    text = s.page.input_value("#text")
    expect(text.startswith("Once upon a time") and len(text) > 20, f"{text!r}")
    if s.server:
        path, body, _ = s.server.requests[-1]
        expect(
            path == "/v1/completions" and body["prompt"] == "Once upon a time" and body["logprobs"] == 5,
            f"{path} {body}",
        )
    expect("first token" in s.page.inner_text("#text-view .stats"), "no times")
    s.page.click("#probabilities")
    s.page.wait_for_selector("#text-tokens [role=option]")
    s.page.locator("#text-tokens [role=option]").first.hover()
    s.page.wait_for_selector("#token-popover:not([hidden])")
    s.shot("complete-probabilities")
    s.page.click("#probabilities")
    s.shot("complete")
    s.page.click("#undo")
    expect(s.page.input_value("#text") == "Once upon a time", "undo left something")
    s.page.click("#proceed")
    s.finished()
    s.page.click("#again")
    s.finished()
    # Editing in the middle of the model's text makes the rest the person's.
    s.page.fill("#text", s.page.input_value("#text")[:25] + " indeed")
    expect(s.page.locator("#undo").is_hidden(), "an edited text can still be undone as the model's")
    s.page.wait_for_timeout(600)
    s.page.reload()
    s.page.wait_for_selector("#conversations .open")
    s.page.click("#conversations .open")
    expect(s.page.input_value("#text").endswith(" indeed"), "the text was not kept")


@check("a model without a chat template completes, and chat explains itself", mock_only=True)
def base_model(s):
    s.url = Mock(template=False).start().url
    s.page.goto(s.url)
    s.page.wait_for_selector("#text-view:not([hidden])")
    s.page.wait_for_selector(".starts")
    s.page.get_by_text("Chat", exact=True).click()
    expect("no chat template" in s.page.inner_text("#welcome"), s.page.inner_text("#welcome"))
    s.page.fill("#message", "Hello")
    s.page.press("#message", "Enter")
    expect(s.page.locator(".turn").count() == 0, "a message was sent to a model that cannot chat")
    s.page.get_by_role("button", name="Complete a text").click()
    expect(s.page.locator("#text").is_visible(), "did not go over")
