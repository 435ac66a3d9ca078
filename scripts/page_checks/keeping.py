"""Settings, conversations, files and storage."""

import os

from .session import check, expect

# Settings


@check("keeps settings, refuses what is out of range, and resets to the server's defaults")
def settings(s):
    s.open()
    s.page.click("#open-settings")
    s.page.fill("#set-temperature", "1.25")
    expect(s.page.input_value("input[aria-label='Temperature, slider']") == "1.25", "the slider did not follow")
    s.page.fill("#set-top_p", "7")
    expect(s.page.get_attribute("#set-top_p", "aria-invalid") == "true", "7 passed as a probability")
    expect("Between 0 and 1" in s.page.inner_text("#set-top_p-error"), "no reason is given")
    s.page.fill("#set-top_k", "2.5")
    expect("whole number" in s.page.inner_text("#set-top_k-error"), "2.5 passed as a count")
    s.shot("settings")
    s.page.reload()
    s.page.wait_for_selector("#welcome h2")
    s.page.click("#open-settings")
    expect(s.page.input_value("#set-temperature") == "1.25", "the temperature was forgotten")
    expect(s.page.input_value("#set-top_p") == "", "a wrong value was kept")
    s.page.click("#reset-settings")
    expect(s.page.input_value("#set-temperature") == "", "reset did not reset")
    expect(
        s.run.real or s.page.get_attribute("#set-temperature", "placeholder") == "0.8",
        "the server's default is not shown",
    )
    s.page.keyboard.press("Escape")
    expect(not s.page.locator("#settings").is_visible(), "Escape did not close the sheet")
    expect(s.page.evaluate("document.activeElement.id") == "open-settings", "the focus did not come back")


# Conversations


@check("keeps several conversations: list, open, rename, delete with a question", needs="chat")
def conversations(s):
    s.open()
    s.limit(5)
    s.send("About cats")
    s.page.click("#new")
    s.send("About dogs")
    s.page.reload()
    s.page.wait_for_selector("#conversations .open")
    titles = s.page.locator("#conversations .title").all_inner_texts()
    expect(titles == ["About dogs", "About cats"], f"{titles}")
    s.page.click("text=About cats")
    expect(s.page.inner_text(".turn.user .body") == "About cats", "the wrong conversation opened")
    s.page.get_by_role("button", name="Rename About cats").click()
    s.page.fill("#question-input", "Felines")
    s.page.keyboard.press("Enter")
    s.page.wait_for_selector("#question", state="hidden")
    expect(s.page.inner_text("#title") == "Felines", "not renamed")
    s.page.get_by_role("button", name="Delete Felines").click()
    expect(s.page.evaluate("document.activeElement.textContent") == "Cancel", "the question does not start on Cancel")
    s.page.keyboard.press("Escape")
    expect(s.page.locator("#conversations .title").count() == 2, "deleted without consent")
    s.page.get_by_role("button", name="Delete Felines").click()
    s.page.get_by_role("button", name="Delete", exact=True).click()
    s.until("document.querySelectorAll('#conversations .title').length === 1")
    s.page.reload()
    s.page.wait_for_selector("#conversations .open")
    expect(s.page.locator("#conversations .title").all_inner_texts() == ["About dogs"], "came back")


@check("opens the conversation that was open", needs="chat")
def reopens(s):
    s.open()
    s.limit(5)
    s.send("About cats")
    s.page.click("#new")
    s.send("About dogs")
    s.page.click("text=About cats")
    s.until("document.querySelector('#title').textContent === 'About cats'")
    for page in [s.page, s.new_page()]:
        page.goto(s.url)
        page.wait_for_selector(".turn.user .body")
        expect(page.inner_text(".turn.user .body") == "About cats", "another conversation was opened")
    s.page.bring_to_front()
    s.page.click("#new")
    s.page.reload()
    s.page.wait_for_selector("#welcome h2")
    expect(s.page.locator(".turn").count() == 0, "a new conversation is none after all")


@check("an answer goes on while another conversation is shown; drafts wait", mock_only=True)
def background(s):
    s.open()
    s.send("A long one [slow]", wait=False)
    s.page.wait_for_selector(".turn.assistant.running:not(.waiting)")
    s.page.click("#new")
    expect(s.page.locator("#conversations .dot").count() == 1, "the running answer is not marked")
    s.page.fill("#message", "half a thought")
    s.page.click("#conversations .open")
    expect(s.page.locator("#stop").is_visible(), "the answer cannot be stopped any more")
    s.page.click("#probabilities")
    s.page.click("#new")
    expect(s.page.input_value("#message") == "half a thought", "the draft was lost")
    s.page.click("#probabilities")
    expect(s.page.input_value("#message") == "half a thought", "the draft was lost with the view")
    s.page.click("#conversations .open")
    before = len(s.answer())
    s.until(f"document.querySelector('.turn.assistant .body').textContent.length > {before + 10}")
    s.page.click("#stop")
    s.finished()


@check("another tab sees what is written", mock_only=True)
def tabs(s):
    s.open()
    other = s.open(s.new_page())
    s.send("Seen elsewhere")
    other.wait_for_selector("#conversations .title >> text=Seen elsewhere")


@check("exports JSON and Markdown, and imports what it exported", needs="chat")
def files(s):
    s.open()
    s.limit(8)
    s.send("To be kept")
    answer = s.answer()

    def export(kind):
        s.page.click("#export")
        with s.page.expect_download() as download:
            s.page.click(f"[data-export={kind}]")
        path = os.path.join(s.run.scratch, download.value.suggested_filename)
        download.value.save_as(path)
        return path

    markdown_path, json_path = export("markdown"), export("all")
    with open(markdown_path, encoding="utf-8") as file:
        text = file.read()
    expect(text.startswith("# To be kept\n") and "## You" in text and "## Model" in text, f"{text!r}")
    s.page.get_by_role("button", name="Delete To be kept").click()
    s.page.get_by_role("button", name="Delete", exact=True).click()
    s.until("document.querySelectorAll('#conversations .title').length === 0")
    s.page.set_input_files("#import-file", json_path)
    s.page.wait_for_selector(".turn.assistant .body")
    expect(s.answer() == answer, "the answer changed on its way")
    s.page.set_input_files("#import-file", json_path)
    s.until("document.querySelectorAll('#conversations .title').length === 2")


@check("refuses files that are not its own, and says why")
def bad_files(s):
    s.open()
    good = (
        '{"format":"bitnet-conversations","version":1,"conversations":[{"id":"x","title":"t","mode":"chat","created":1,'
        '"updated":1,"system":"","segments":[],"messages":[%s]}]}'
    )
    cases = [
        ("not json", "it is not JSON"),
        ("{}", "not exported by this page"),
        (good.replace('"version":1', '"version":9') % "", "its version is 9"),
        (good % '{"role":"root","content":"x"}', 'role is "root"'),
        (good % '{"role":"user","content":5}', "messages[0].content is no text"),
        (good % '{"role":"user","content":"x","tokens":[{"text":"x","logprob":"y","top":[]}]}', "logprob is no number"),
        (good.replace('"chat"', '"__proto__"') % "", "mode is"),
    ]
    for i, (text, words) in enumerate(cases):
        name = f"bad{i}.json"
        s.page.set_input_files("#import-file", {"name": name, "mimeType": "application/json", "buffer": text.encode()})
        notice = s.page.locator(".notice", has_text=name)
        notice.wait_for()
        expect(words in notice.inner_text(), f"{notice.inner_text()!r} lacks {words!r}")
    expect(s.page.locator("#conversations .title").count() == 0, "something was imported")


@check("lives with storage that is full or off", mock_only=True)
def storage(s):
    s.open()
    s.page.evaluate("""() => {
        let size = 1 << 20;
        for (let i = 0; size > 0; i++) {
            try { localStorage.setItem(`filler${i}`, 'x'.repeat(size)); } catch { size >>= 1; }
        }
    }""")
    s.send("Where to put this?")
    s.page.wait_for_selector(".notice >> text=storage is full")
    expect(len(s.answer()) > 20, "no answer")
    off = s.new_page()
    off.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, name, { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    s.open(off)
    off.wait_for_selector(".notice >> text=keeps nothing")
    off.fill("#message", "Still works?")
    off.press("#message", "Enter")
    off.wait_for_selector(".turn.assistant:not(.running) .tools")
    expect(off.locator("#conversations .title").count() == 1, "the conversation is not listed")


@check("gives up old token details before it loses a conversation", mock_only=True)
def makes_room(s):
    s.open()
    s.send("The old one")
    s.page.evaluate("""() => {
        let size = 1 << 20;
        for (let i = 0; size > 16; i++) {
            try { localStorage.setItem(`filler${i}`, 'x'.repeat(size)); } catch { size >>= 1; }
        }
    }""")
    s.page.click("#new")
    s.limit(3)
    s.send("The new one")
    s.page.wait_for_selector(".notice >> text=were given up")
    s.page.reload()
    s.page.wait_for_selector("#conversations .open")
    titles = s.page.locator("#conversations .title").all_inner_texts()
    expect(titles == ["The new one", "The old one"], f"{titles}")
