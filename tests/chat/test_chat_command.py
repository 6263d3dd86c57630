"""`kandiga-run chat` with real, tiny models: on a terminal and through pipes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat_screenshot import picture
from packed import PackedModels
from terminal_screen import TerminalScreen

CHAT = [sys.executable, "-m", "kandiga_run", "chat"]


@pytest.fixture
def terminal(packed: PackedModels, tmp_path: Path) -> Iterator[TerminalScreen]:
    """Return a chat with a hybrid model: attention and recurrent layers."""
    model = packed("qwen3_next").container
    options = ["--max-tokens", "8", "--memory", "300MB", "--context", "300"]
    environment = {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    terminal = TerminalScreen([*CHAT, str(model), *options], environment=environment, columns=120)
    yield terminal
    terminal.close()


def test_fast_and_back(terminal: TerminalScreen) -> None:
    """Another number of experts is another computation: the conversation is read again."""
    terminal.enter("Hello")
    terminal.enter("And now?")
    terminal.enter("/stats")
    terminal.wait_for("more reused")
    terminal.enter("/fast")
    terminal.wait_for("fast: on, 1 of the model's 2 experts a token (lossy)")
    terminal.enter("/stats")
    terminal.wait_for("no answer yet")
    terminal.enter("Hello")
    terminal.wait(lambda: terminal.at_prompt, "prompt")
    assert "8 tokens" in terminal.text
    terminal.enter("/fast")
    terminal.wait_for("fast: off, 2 of the model's 2 experts a token")
    terminal.enter("/exit")
    assert terminal.exit_code() == 0


def test_regen_of_a_hybrid_computes_no_more_than_the_beginning_of_the_answer(
    terminal: TerminalScreen,
) -> None:
    terminal.enter("The experts are read from disk, and the router selects a few of them. Why?")
    terminal.enter("/regen")
    terminal.enter("/stats")
    terminal.wait_for("more reused")
    terminal.enter("/exit")
    assert terminal.exit_code() == 0


def test_a_picture_of_it(packed: PackedModels, tmp_path: Path) -> None:
    """How docs/images/chat.svg is made, with a model that says nothing sensible."""
    model = str(packed("qwen3_moe").container)
    path = tmp_path / "chat.svg"
    text = picture(model, path, questions=["Hello?"], options=["--max-tokens", "5"])
    svg = path.read_text()
    assert "> Hello?" in text
    for words in ("Hello?", "Ctrl-C&#160;stops", "context&#160;", "kandiga-run chat"):
        assert words in svg.replace("kandiga-run&#160;chat", "kandiga-run chat")
    assert "url(http" not in svg.replace('"', "")


def test_json_through_pipes(packed: PackedModels) -> None:
    model = packed("qwen3_moe").container
    done = subprocess.run(
        [*CHAT, str(model), "--max-tokens", "6", "--json"],
        input='Hello\n"""\nAnd\nnow?\n"""\n',
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["usage"]["generated_tokens"] == second["usage"]["generated_tokens"] == 6
    assert second["usage"]["reused_prompt_tokens"] > 0
    assert first["model"] == str(model)


def test_fast_is_told_at_the_start(packed: PackedModels) -> None:
    model = packed("qwen3_moe").container
    done = subprocess.run(
        [*CHAT, str(model), "--fast", "--max-tokens", "2"],
        input="Hello\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "lossy: experts a token 1 instead of the model's 2" in done.stderr
