"""The built-in page, used as a person uses it, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from kandiga_run.tokenizer.prompts import Prompts
from server.browser import chromium
from server.scripted import ScriptedServer, make_prompts

ANSWER = """<think>
Eight experts of 256 is 3 %.
</think>

## Why it fits

A token needs **few** of the experts, so the rest stays on *disk*:

1. the router picks eight of 256
2. those are read, `1.77 MB` each
3. they are computed as they arrive

```python
experts = router(hidden)[:8]
```

| model | memory |
|---|---|
| 35B | 2 GB |

See [the notes](https://example.com/notes) and [not this](javascript:alert(1)).
"""
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
SCRIPTS = {
    "memory": ANSWER,
    "hostile": HOSTILE,
    "long": "word " * 2000,
    "name": "I am a script.",
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return make_prompts(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def scripted(prompts: Prompts) -> Iterator[ScriptedServer]:
    with ScriptedServer(prompts, SCRIPTS) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, scripted: ScriptedServer) -> Iterator[Page]:
    """Return the page, fresh; what the browser complains about fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 860})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    # Of a refused request Chromium writes this by itself; whether it should be is the test's own.
    refused = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")
    page.on("pageerror", lambda error: complaints.append(str(error)))
    foreign: list[str] = []
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(scripted.url) else foreign.append(request.url)
        ),
    )
    page.goto(scripted.url)
    expect(page.locator("#model")).to_have_text("scripted")
    yield page
    context.close()
    assert [text for text in complaints if not refused.match(text)] == []
    assert foreign == []


def ask(page: Page, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def test_a_question_is_answered_with_reasoning_and_markdown(page: Page) -> None:
    ask(page, "Why does it fit in memory?")
    answer = page.locator(".message.assistant").last
    expect(answer.locator(".figures")).to_contain_text("tokens/s")
    expect(page.locator(".message.user")).to_have_text("Why does it fit in memory?")
    text = answer.locator("> .text")
    expect(text.locator("h4")).to_have_text("Why it fits")
    expect(text.locator("ol li")).to_have_count(3)
    expect(text.locator("pre code")).to_have_text("experts = router(hidden)[:8]")
    expect(text.locator("strong")).to_have_text("few")
    expect(text.locator("td")).to_have_text(["35B", "2 GB"])
    links = text.locator("a")
    expect(links).to_have_count(1)
    expect(links).to_have_attribute("href", "https://example.com/notes")
    expect(links).to_have_attribute("rel", "noopener noreferrer")
    # Folded once the answer begins; a click shows it.
    reasoning = answer.locator("details.reasoning")
    expect(reasoning).not_to_have_attribute("open", "")
    reasoning.locator("summary").click()
    expect(reasoning.locator(".text")).to_have_text("Eight experts of 256 is 3 %.")
    expect(reasoning.locator(".text")).to_be_visible()


def test_what_a_model_writes_is_text_and_nothing_else(page: Page) -> None:
    ask(page, "Be hostile.")
    answer = page.locator(".message.assistant").last
    expect(answer.locator(".figures")).to_be_visible()
    expect(answer.locator("> .text")).to_have_text(HOSTILE)
    assert answer.locator("img, script").count() == 0
    assert page.title() == "scripted"


def test_stop_ends_the_answer_and_the_server_computes_no_more(
    page: Page, scripted: ScriptedServer
) -> None:
    before = scripted.scheduler.status().cancelled
    scripted.engine.step_seconds = 0.02
    try:
        ask(page, "Say something long.")
        expect(page.locator(".message.assistant > .text")).to_contain_text("word word")
        page.locator("#stop").click()
        expect(page.locator(".figures")).to_have_text("stopped")
        scripted.wait_for("cancelled", before + 1)
    finally:
        scripted.engine.step_seconds = 0.0
    expect(page.locator("#send")).to_be_visible()
    ask(page, "Your name?")
    expect(page.locator(".message.assistant > .text").last).to_have_text("I am a script.")


def test_the_conversation_goes_on_and_starts_again(page: Page, scripted: ScriptedServer) -> None:
    page.locator("#system").fill("Be brief.")
    ask(page, "Your name?")
    expect(page.locator(".figures")).to_have_count(1)
    ask(page, "And your name again?")
    expect(page.locator(".figures")).to_have_count(2)
    told = scripted.engine.last_prompt
    assert "<|im_start|>system\nBe brief.<|im_end|>" in told
    assert "<|im_start|>assistant\nI am a script.<|im_end|>" in told
    page.locator("#new").click()
    expect(page.locator(".message")).to_have_count(0)
    ask(page, "Once more, your name?")
    expect(page.locator(".figures")).to_have_count(1)
    assert "And your name again?" not in scripted.engine.last_prompt


def test_a_refusal_is_shown_and_the_question_kept(page: Page) -> None:
    question = "Too much. " * 3000
    ask(page, question)
    expect(page.locator(".failure")).to_contain_text("the prompt is too long")
    expect(page.locator("#prompt")).to_have_value(question.strip())


def test_status_panel_and_themes(page: Page) -> None:
    panel = page.locator("#status")
    expect(panel).to_contain_text("4096 tokens")
    expect(panel).to_contain_text("0 of 4")
    expect(panel).to_contain_text(re.compile(r"\d+ MB|\d+\.\d+ GB"))

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    first = background()
    page.locator("#theme").click()
    assert background() != first
    page.reload()
    expect(page.locator("#model")).to_have_text("scripted")
    assert background() != first  # remembered


def test_a_server_with_a_key_asks_for_it(browser: Browser, prompts: Prompts) -> None:
    with ScriptedServer(prompts, SCRIPTS, api_key="open sesame") as server:
        page = browser.new_page()
        page.goto(server.url)
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.locator("#key").fill("wrong")
        page.locator("#key").press("Enter")
        expect(page.locator("#key-error")).to_contain_text("a valid API key is wanted")
        page.locator("#key").fill("open sesame")
        page.locator("#key").press("Enter")
        expect(page.locator("#model")).to_have_text("scripted")
        expect(dialog).not_to_be_visible()
        ask(page, "Your name?")
        expect(page.locator(".message.assistant > .text")).to_have_text("I am a script.")
        page.close()


def test_nothing_but_the_page_itself_may_run(scripted: ScriptedServer) -> None:
    with scripted.client() as client:
        index = client.get("/")
        policy = index.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert re.findall(r"<script(?![^>]*src=\"/page/)", index.text) == []
        assert re.findall(r"\sstyle=|\son\w+=", index.text) == []
        for name in re.findall(r"/page/([\w.]+)", index.text):
            assert client.get(f"/page/{name}").status_code == 200
        assert client.get("/page/../app.py").status_code == 404
        assert client.get("/page/nothing.js").status_code == 404
