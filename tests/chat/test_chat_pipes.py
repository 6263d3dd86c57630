"""`kandiga-run chat` without a terminal: a line each, an answer each."""

from pathlib import Path

import pytest

from greedy import direct_greedy
from kandiga_command import kandiga_run, ok
from kandiga_run.engine import load_engine
from kandiga_run.terminal.exit_codes import ExitCode
from kandiga_run.tokenizer.prompts import Prompts
from packed import PackedModels


@pytest.fixture(scope="module")
def model(packed: PackedModels) -> Path:
    return packed("qwen3_moe").container


class TestChatThroughPipes:
    """Each line is answered; nothing but answers on stdout."""

    def test_turns_share_a_history(self, model: Path) -> None:
        result = ok("chat", model, "--max-tokens", "8", "--quiet", text="Hello\nAnd?\n")
        prompts = Prompts(model)
        engine = load_engine(model)
        first = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        second = "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
        tokens: list[int] = []
        wanted = ""
        for new in (first, second):
            tokens += prompts.encode(new)
            answer = direct_greedy(engine, tokens, 8, prompts.stop_token_ids)
            text = prompts.decode(answer)
            wanted += text if text.endswith("\n") else f"{text}\n"
            tokens += [token for token in answer if token not in prompts.stop_token_ids]
        engine.close()
        assert result.stdout == wanted
        assert result.stderr == ""

    def test_state_is_kept(self, model: Path) -> None:
        result = ok("chat", model, "--max-tokens", "8", text="Hello\nAnd?\n/stats\n")
        assert "more reused" in result.stderr

    def test_commands(self, model: Path) -> None:
        text = "/help\n/system Be brief.\n/reset\n/nonsense\n/exit\nHello\n"
        result = ok("chat", model, text=text)
        assert result.stdout == ""
        assert "system prompt: Be brief." in result.stderr
        assert "conversation forgotten" in result.stderr
        assert "/nonsense: no such command" in result.stderr

    def test_last_line_without_newline(self, model: Path) -> None:
        assert ok("chat", model, "--max-tokens", "4", text="Hello").stdout

    def test_failure_ends_it(self, model: Path) -> None:
        result = kandiga_run("chat", model, "--context", "40", text="Hello " * 60 + "\nHello\n")
        assert result.returncode == ExitCode.FAILED
        assert "context 40: start over (/reset)" in result.stderr
