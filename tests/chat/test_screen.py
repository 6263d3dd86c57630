"""The chat on a real pseudo-terminal: what a person sees and can press."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripted_engine import CHATML
from terminal_screen import (
    ALT_ENTER,
    ARROW_UP,
    CTRL_C,
    CTRL_D,
    CTRL_O,
    TAB,
    TerminalScreen,
)

PROGRAM = Path(__file__).with_name("scripted_chat.py")
THINKING = CHATML + "{# <think> </think> #}"
MARKDOWN = """# Disks

A disk is **round** and has <div> tags.
It turns.

- one
- two `code`

```python
def add(a, b):
    return a + b
```

| speed | size |
|---|---|
| 3 GB/s | 18 GB |

Done."""

Start = Callable[..., TerminalScreen]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return what starts a chat with a model that gives these answers in turn."""
    started: list[TerminalScreen] = []

    def start(*answers: str, columns: int = 80, rows: int = 24, **plan: Any) -> TerminalScreen:
        file = tmp_path / "answers.json"
        file.write_text(json.dumps({"answers": answers, **plan}))
        terminal = TerminalScreen(
            [sys.executable, str(PROGRAM), str(tmp_path / "model"), str(file)],
            environment={"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)},
            folder=tmp_path,
            columns=columns,
            rows=rows,
        )
        started.append(terminal)
        terminal.wait_for("/help lists commands")
        return terminal

    yield start
    for terminal in started:
        terminal.close()


def answered(terminal: TerminalScreen) -> str:
    """Wait for the prompt after an answer; return what the last message brought."""
    terminal.wait(lambda: terminal.at_prompt, "the prompt after it")
    said = terminal.text.rsplit("\n> ", 1)[-1] if terminal.text.count("\n> ") else terminal.text
    return said.partition("\n")[2].rsplit("\n>", 1)[0].strip()


def ask(terminal: TerminalScreen, text: str) -> str:
    terminal.enter(text)
    return answered(terminal)


class TestAnswers:
    """What an answer looks like."""

    def test_markdown(self, start: Start) -> None:
        rows = ask(start(MARKDOWN), "What is a disk?").splitlines()
        assert rows[0] == "Disks"
        assert "A disk is round and has <div> tags." in rows
        assert "It turns." in rows
        assert [row.strip() for row in rows if "•" in row] == ["• one", "• two code"]
        code = rows.index("def add(a, b):")
        assert rows[code - 1].startswith("python ──")
        assert rows[code + 1] == "    return a + b"
        assert re.fullmatch(r" *speed +size", rows[code + 4])
        assert rows[-1] == "Done."
        # One blank line between two blocks, never two.
        assert "\n\n\n" not in "\n".join(rows)

    def test_streaming_ends_as_rendering_at_once_does(self, start: Start) -> None:
        """However it was cut, drawn and scrolled: the whole answer stands there once."""
        paragraphs = [f"Paragraph {n} with **bold** words. " + "filler " * 30 for n in range(12)]
        listing = "\n".join(f"- item {n} " + "words " * 20 for n in range(20))
        code = "```\n" + "\n".join(f"line {n}" for n in range(40)) + "\n```"
        source = "\n\n".join([*paragraphs, listing, code, "The end."])
        limits = {"max_tokens": 9000, "context_tokens": 9999}
        terminal = start(source, columns=60, rows=12, seconds_per_token=0.0005, **limits)
        shown = ask(terminal, "Much?")
        from kandiga_run.chat.markdown_lines import LineRenderer, split_blocks

        renderer = LineRenderer(60, None)
        wanted = "\n\n".join("\n".join(renderer.markdown(b)) for b in split_blocks(source))
        plain = "\n".join(line.rstrip() for line in wanted.splitlines())
        assert re.sub(r"─+", "─", shown) == re.sub(r"─+", "─", plain)

    def test_nothing_flickers(self, start: Start) -> None:
        """Text that stands is not written again: bytes grow with the answer, not its square."""
        source = "\n\n".join("word " * 40 for _ in range(10))
        terminal = start(source, seconds_per_token=0.001)
        terminal.wait(lambda: terminal.at_prompt, "prompt")
        before = len(terminal.written)
        ask(terminal, "Much?")
        assert len(terminal.written) - before < 15 * len(source)
        assert terminal.written.count(b"\x1b[2J") == 0

    def test_control_characters_do_nothing(self, start: Start) -> None:
        terminal = start("a\x1b[2Jb\x07c")
        assert "a\ufffd[2Jb\ufffdc" in ask(terminal, "Hello")
        assert b"\x1b[2J" not in terminal.written

    def test_status_line(self, start: Start) -> None:
        terminal = start("word " * 100, seconds_per_token=0.005)
        terminal.enter("Hello")
        terminal.wait_for("MB · Ctrl-C stops")
        pattern = r"qwen3-30b · \d+ tokens · [\d.]+ tokens/s · context \d+/4000 · [\d.]+ MB"
        terminal.wait(lambda: re.search(pattern, terminal.rows[-1]), "status line")
        assert "MB · Ctrl-C stops" not in terminal.text

    def test_progress_of_a_long_prompt(self, start: Start) -> None:
        terminal = start("Yes.", seconds_per_token=0.05)
        terminal.enter("word " * 60)
        terminal.wait_for("reading the prompt ")
        assert "Yes." in answered(terminal)
        assert "reading the prompt" not in terminal.text


class TestReasoning:
    """Dimmed, folded up unless it is asked for."""

    ANSWER = "<think>\nLet me see.\nThe user is asking.\n</think>\n\nYes."

    def dim(self, terminal: TerminalScreen, text: str) -> bool:
        """Whether a text is written dimmed and in italics."""
        return (
            re.search(rb"\x1b\[2;3m[^\x1b]*" + re.escape(text.encode()), terminal.written)
            is not None
        )

    def test_collapsed(self, start: Start) -> None:
        terminal = start(self.ANSWER, template=THINKING, seconds_per_token=0.02)
        terminal.enter("Hello")
        terminal.wait_for("thinking, 0 s: ")
        shown = answered(terminal)
        assert re.fullmatch(r"▸ thought for \d+ s \(Ctrl-O shows it\)\n\nYes\.", shown)
        assert self.dim(terminal, "▸ thought for")
        terminal.press(CTRL_O)
        terminal.wait_for("The user is asking.")
        assert self.dim(terminal, "The user is asking.")

    def test_shown(self, start: Start) -> None:
        terminal = start(self.ANSWER, template=THINKING)
        assert ask(terminal, "/set reasoning show") == "reasoning: show"
        assert ask(terminal, "Hello") == "Let me see.\nThe user is asking.\n\nYes."
        assert self.dim(terminal, "The user is asking.")

    def test_hidden(self, start: Start) -> None:
        terminal = start(self.ANSWER, template=THINKING)
        ask(terminal, "/set reasoning hide")
        assert ask(terminal, "Hello") == "Yes."

    def test_a_key_unfolds_it_while_it_is_written(self, start: Start) -> None:
        thoughts = "\n".join(f"Thought {n}." for n in range(30))
        terminal = start(
            f"<think>\n{thoughts}\n</think>\n\nYes.", template=THINKING, seconds_per_token=0.01
        )
        terminal.enter("Hello")
        terminal.wait_for("thinking, ")
        terminal.press(CTRL_O)
        terminal.wait_for("Thought 12.")
        assert answered(terminal) == thoughts + "\n\nYes."


class TestKeys:
    """What can be pressed."""

    def test_ctrl_c_stops_the_answer_and_keeps_the_session(self, start: Start) -> None:
        terminal = start("word " * 500, "Yes.", seconds_per_token=0.01)
        terminal.enter("Hello")
        terminal.wait_for("word word")
        terminal.press(CTRL_C)
        terminal.wait_for("stopped")
        assert 1 < answered(terminal).count("word") < 500, terminal.text
        assert ask(terminal, "And?") == "Yes."
        assert not terminal.screen.cursor.hidden

    def test_ctrl_c_while_the_prompt_is_read(self, start: Start) -> None:
        terminal = start("Yes.", seconds_per_token=0.05)
        terminal.enter("word " * 60)
        terminal.wait_for("reading the prompt ")
        terminal.press(CTRL_C)
        terminal.wait_for("stopped")
        assert ask(terminal, "/undo") == "there is nothing to take back"

    def test_ctrl_c_at_the_prompt_drops_the_line(self, start: Start) -> None:
        terminal = start("Yes.")
        terminal.wait(lambda: terminal.at_prompt, "prompt")
        terminal.press("nonsense")
        terminal.wait_for("nonsense")
        terminal.press(CTRL_C)
        assert ask(terminal, "Hello") == "Yes."

    @pytest.mark.parametrize("keys", [CTRL_D, "/exit\r"])
    def test_leaving(self, start: Start, keys: str) -> None:
        terminal = start("Yes.")
        terminal.wait(lambda: terminal.at_prompt, "prompt")
        terminal.press(keys)
        assert terminal.exit_code() == 0

    def test_history_outlives_the_session(self, start: Start, tmp_path: Path) -> None:
        terminal = start("Yes.")
        ask(terminal, "What is the capital of France?")
        terminal.press(CTRL_D)
        terminal.exit_code()
        file = tmp_path / "state" / "kandiga" / "chat_history"
        assert file.stat().st_mode & 0o777 == 0o600
        again = start("No.")
        again.wait(lambda: again.at_prompt, "prompt")
        again.press(ARROW_UP)
        again.wait_for("> What is the capital of France?")
        again.press("\r")
        again.wait_for("No.")

    def test_tab_completes_commands(self, start: Start) -> None:
        terminal = start("Yes.")
        terminal.wait(lambda: terminal.at_prompt, "prompt")
        terminal.press("/he" + TAB)
        terminal.wait_for("> /help")

    def test_what_is_typed_during_an_answer_begins_the_next_line(self, start: Start) -> None:
        terminal = start("word " * 60, "Yes.", seconds_per_token=0.01)
        terminal.enter("Hello")
        terminal.wait_for("word word")
        terminal.press("And" + ARROW_UP + " then?")
        terminal.wait_for("> And then?")
        terminal.press("\r")
        terminal.wait_for("Yes.")


class TestSeveralLines:
    """Messages longer than a line."""

    @pytest.mark.parametrize(
        "keys",
        ["one" + ALT_ENTER + "two", "one\\\rtwo", '"""one\rtwo"""', '"""\rone\rtwo\r"""'],
        ids=["alt-enter", "backslash", "quotes", "quotes on lines of their own"],
    )
    def test_several_lines(self, start: Start, tmp_path: Path, keys: str) -> None:
        terminal = start("Yes.")
        terminal.wait(lambda: terminal.at_prompt, "prompt")
        for key in re.findall(r"\x1b\r|.", keys, flags=re.DOTALL):
            terminal.press(key)
            terminal.read(0.02)
        terminal.press("\r")
        terminal.wait_for("Yes.")
        terminal.enter("/save talk.json")
        terminal.wait_for("2 messages written")
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert saved["messages"][0] == {"role": "user", "content": "one\ntwo"}

    def test_pasted_lines(self, start: Start, tmp_path: Path) -> None:
        terminal = start("Yes.")
        terminal.wait(lambda: terminal.at_prompt, "prompt")
        terminal.press("\x1b[200~one\ntwo\x1b[201~")
        terminal.wait_for("two")
        terminal.press("\r")
        terminal.wait_for("Yes.")
        terminal.enter("/save talk.json")
        terminal.wait_for("2 messages written")
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert saved["messages"][0]["content"] == "one\ntwo"


class TestCommands:
    """Each does what /help says."""

    def test_help(self, start: Start) -> None:
        shown = ask(start("Yes.", rows=30), "/help")
        for name in ("system", "reset", "undo", "regen", "set", "fast", "save", "load", "stats"):
            assert f"/{name} " in shown
        assert "Ctrl-C stops an answer" in shown
        assert "Alt-Enter" in shown

    def test_unknown(self, start: Start) -> None:
        assert ask(start("Yes."), "/quit") == "/quit: no such command; /help lists them"

    def test_system(self, start: Start) -> None:
        terminal = start("Yes.")
        assert ask(terminal, "/system") == "system prompt: (none)"
        assert ask(terminal, "/system Be brief.") == "system prompt: Be brief."
        assert ask(terminal, "/system none") == "system prompt: (none)"

    def test_undo_and_reset(self, start: Start, tmp_path: Path) -> None:
        terminal = start("Yes.", "No.")
        ask(terminal, "One?")
        ask(terminal, "Two?")
        assert ask(terminal, "/undo") == "taken back: Two?"
        assert ask(terminal, "/save a.json").endswith("2 messages written")
        assert ask(terminal, "/reset") == "conversation forgotten"
        assert ask(terminal, "/save b.json").endswith("0 messages written")
        assert ask(terminal, "/undo") == "there is nothing to take back"

    def test_regen(self, start: Start, tmp_path: Path) -> None:
        terminal = start("Yes.", "No.")
        assert ask(terminal, "/regen") == "there is no question to answer"
        assert ask(terminal, "One?") == "Yes."
        shown = ask(terminal, "/regen")
        assert shown.startswith("greedy: the same answer again; /set temperature")
        assert shown.endswith("No.")
        ask(terminal, "/save talk.json")
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert [m["content"] for m in saved["messages"]] == ["One?", "No."]

    def test_set(self, start: Start) -> None:
        terminal = start("Yes. And more of it.", "Yes.", rows=30)
        assert "temperature: 0\n" in ask(terminal, "/set")
        assert ask(terminal, "/set temperature 0.7") == "temperature: 0.7"
        assert ask(terminal, "/set temperature default") == "temperature: 0"
        assert "wanted 0 (greedy) or more" in ask(terminal, "/set temperature warm")
        assert "wanted 0 or more" in ask(terminal, "/set temperature -1")
        assert "no such setting; there are temperature," in ask(terminal, "/set heat 3")
        assert ask(terminal, "/set max_tokens 3") == "max_tokens: 3"
        assert "ends at its limit of 3 tokens" in ask(terminal, "Hello")
        assert ask(terminal, "/set think off") == "think: off"
        assert ask(terminal, "/set stats on") == "stats: on"
        assert "tokens/s" in ask(terminal, "Hello")

    def test_plain_text_instead_of_markdown(self, start: Start) -> None:
        terminal = start("A **bold** word.\n- one")
        ask(terminal, "/set markdown off")
        assert ask(terminal, "Hello") == "A **bold** word.\n- one"

    def test_save_and_load(self, start: Start) -> None:
        terminal = start("Yes.")
        ask(terminal, "/system Be brief.")
        ask(terminal, "One?")
        assert ask(terminal, "/save talk.json") == "talk.json: 2 messages written"
        ask(terminal, "/reset")
        ask(terminal, "/system none")
        assert ask(terminal, "/load talk.json") == "talk.json: 2 messages read"
        assert ask(terminal, "/system") == "system prompt: Be brief."
        assert ask(terminal, "/undo") == "taken back: One?"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "there is no such file"),
            ("{", "not JSON"),
            ("{}", "kandiga_chat is None, wanted 1"),
            ('{"kandiga_chat": 1, "messages": [{"role": "x"}]}', "its messages are damaged"),
        ],
    )
    def test_load_of_something_else(
        self, start: Start, tmp_path: Path, content: str | None, message: str
    ) -> None:
        if content is not None:
            (tmp_path / "talk.json").write_text(content)
        terminal = start("Yes.", columns=200)
        shown = ask(terminal, "/load talk.json")
        assert message in shown
        assert shown.count("\n") == 0
        assert "wanted the name of a file" in ask(terminal, "/save")

    def test_stats(self, start: Start) -> None:
        terminal = start("Yes.")
        assert ask(terminal, "/stats") == "no answer yet"
        ask(terminal, "Hello")
        assert "memory charged" in ask(terminal, "/stats")

    def test_fast(self, start: Start) -> None:
        terminal = start("Yes.")
        on = "fast: on, 1 of the model's 2 experts a token (lossy)"
        off = "fast: off, 2 of the model's 2 experts a token"
        assert ask(terminal, "/fast") == on
        terminal.wait_for("fast (lossy)")
        assert ask(terminal, "/fast on") == on
        assert ask(terminal, "/fast off") == off
        assert "wanted on or off" in ask(terminal, "/fast maybe")


def test_a_window_made_smaller_in_the_middle(start: Start) -> None:
    terminal = start("word " * 100 + "the end", seconds_per_token=0.005)
    terminal.enter("Hello")
    terminal.wait_for("word word")
    terminal.resize(50, 15)
    time.sleep(0.2)
    assert answered(terminal).split()[-2:] == ["the", "end"]
