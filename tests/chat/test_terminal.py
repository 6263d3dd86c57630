"""Messages in, answers on stdout, the rest on stderr: no terminal needed."""

import io
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kandiga_run.chat.commands import COMMANDS
from kandiga_run.chat.json_view import JsonView
from kandiga_run.chat.line_input import PlainReader, message_of, needs_more
from kandiga_run.chat.plain_view import PlainView
from kandiga_run.chat.terminal import ChatTerminal
from kandiga_run.chat.views import ViewSettings
from kandiga_run.errors import RunError
from kandiga_run.terminal.output import Output
from scripted_engine import CHATML, ScriptedEngine, chatml_prompts, conversation, script


class Lines:
    """Messages, and exceptions in the place of messages; then the end."""

    def __init__(self, lines: Sequence[str | type[BaseException]]) -> None:
        self._lines = iter(lines)

    def read(self) -> str:
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


class TestTerminal:
    """Lines in, answers on stdout, the rest on stderr."""

    def talk(
        self,
        folder: Path,
        lines: Sequence[str | type[BaseException]],
        *,
        answers: Sequence[str] = ("Yes.",),
        is_interactive: bool = True,
        shows_stats: bool = False,
        on_forward: Callable[[ScriptedEngine], None] | None = None,
        view: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> tuple[str, str]:
        prompts = chatml_prompts(folder)
        scripts = [script(prompts, answer) for answer in answers]
        talk, engine = conversation(prompts, scripts, **arguments)
        if on_forward:
            engine.before_forward = lambda: on_forward(engine)
        output = Output(stdout=io.StringIO(), stderr=io.StringIO())
        settings = ViewSettings(stats=shows_stats, **(view or {}))
        ChatTerminal(
            talk,
            output,
            Lines(lines),
            PlainView(output, settings),
            is_interactive=is_interactive,
            view_settings=settings,
        ).run()
        assert isinstance(output.stdout, io.StringIO)
        assert isinstance(output.stderr, io.StringIO)
        return output.stdout.getvalue(), output.stderr.getvalue()

    def test_answers_go_to_stdout(self, tmp_path: Path) -> None:
        assert self.talk(tmp_path, ["One?", "", "Two?"]) == ("Yes.\nYes.\n", "")

    def test_exit(self, tmp_path: Path) -> None:
        assert self.talk(tmp_path, ["/exit", "One?"]) == ("", "")

    def test_help_lists_every_command(self, tmp_path: Path) -> None:
        stdout, stderr = self.talk(tmp_path, ["/help"])
        assert stdout == ""
        assert all(name in stderr for name in COMMANDS)
        assert {"/help", "/reset", "/system", "/stats", "/exit"} <= set(COMMANDS)

    def test_unknown_command(self, tmp_path: Path) -> None:
        _, stderr = self.talk(tmp_path, ["/quit"])
        assert stderr == "/quit: no such command; /help lists them\n"

    def test_system(self, tmp_path: Path) -> None:
        _, stderr = self.talk(
            tmp_path, ["/system", "/system Be brief.", "/system", "/system none", "/system"]
        )
        prefix = "system prompt: "
        shown = [line.removeprefix(prefix) for line in stderr.splitlines()]
        assert shown == ["(none)", "Be brief.", "Be brief.", "(none)", "(none)"]

    def test_reset(self, tmp_path: Path) -> None:
        """With room for one turn only, a second one fits after /reset."""
        lines = ["One?", "Two?", "/reset", "Three?"]
        stdout, stderr = self.talk(tmp_path, lines, context_tokens=30)
        assert stdout == "Yes.\nYes.\n"
        assert "start over (/reset)" in stderr
        assert "conversation forgotten" in stderr

    def test_stats(self, tmp_path: Path) -> None:
        stdout, stderr = self.talk(tmp_path, ["/stats", "One?", "/stats"])
        assert stdout == "Yes.\n"
        assert stderr.startswith("no answer yet\n")
        assert "tokens/s" in stderr
        assert "memory charged" in stderr

    def test_stats_after_every_answer(self, tmp_path: Path) -> None:
        _, stderr = self.talk(tmp_path, ["One?", "Two?"], shows_stats=True)
        assert stderr.count("memory charged") == 2

    def test_length_is_told(self, tmp_path: Path) -> None:
        _, stderr = self.talk(tmp_path, ["One?"], answers=["the router " * 40])
        assert "the answer ends at its limit of 50 tokens" in stderr

    def test_failure_keeps_an_interactive_session(self, tmp_path: Path) -> None:
        lines = ["the router selects a few experts " * 20, "One?"]
        stdout, stderr = self.talk(tmp_path, lines, context_tokens=40)
        assert stdout == "Yes.\n"
        assert stderr.startswith("kandiga-run: the conversation has")

    def test_failure_ends_a_script(self, tmp_path: Path) -> None:
        with pytest.raises(RunError):
            self.talk(tmp_path, ["router " * 200], is_interactive=False, context_tokens=40)

    def test_interrupt_at_the_prompt_drops_the_line(self, tmp_path: Path) -> None:
        assert self.talk(tmp_path, [KeyboardInterrupt, "One?"]) == ("Yes.\n", "")

    def test_interrupt_of_a_script_ends_it(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.talk(tmp_path, [KeyboardInterrupt], is_interactive=False)

    def test_interrupt_stops_the_answer(self, tmp_path: Path) -> None:
        def interrupt_third_token(engine: ScriptedEngine) -> None:
            if engine.chunks[-2:] == [1, 1] and len(engine.states) == 1:
                engine.before_forward = lambda: None
                signal.raise_signal(signal.SIGINT)

        stdout, stderr = self.talk(
            tmp_path,
            ["One?", "Two?"],
            answers=["a b c d e f g", "Yes."],
            on_forward=interrupt_third_token,
        )
        first, second = stdout.splitlines()
        assert "a b c d e f g".startswith(first)
        assert first
        assert first != "a b c d e f g"
        assert second == "Yes."
        assert stderr == "stopped\n"

    def test_interrupt_stops_the_prefill(self, tmp_path: Path) -> None:
        def interrupt_once(engine: ScriptedEngine) -> None:
            engine.before_forward = lambda: None
            signal.raise_signal(signal.SIGINT)

        lines = ["What do the experts do?", "One?"]
        stdout, stderr = self.talk(tmp_path, lines, on_forward=interrupt_once)
        assert stdout == "Yes.\n"
        assert stderr == "stopped\n"

    def test_second_interrupt_does_not_wait(self, tmp_path: Path) -> None:
        def interrupt_twice(engine: ScriptedEngine) -> None:
            engine.before_forward = lambda: None
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        stdout, stderr = self.talk(tmp_path, ["One?", "Two?"], on_forward=interrupt_twice)
        assert stdout == "Yes.\n"
        assert stderr == "kandiga-run: interrupted\n"

    def test_signal_handler_is_given_back(self, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGINT)
        self.talk(tmp_path, ["One?"])
        assert signal.getsignal(signal.SIGINT) is before


def test_control_characters_do_not_reach_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output = Output(stdout=Terminal(), stderr=io.StringIO())
    output.text("a\x1b[2J\tb\n\x07é")
    assert isinstance(output.stdout, io.StringIO)
    assert output.stdout.getvalue() == "a\ufffd[2J\tb\n\ufffdé"


class TestPlainInput:
    """Lines from a pipe."""

    @pytest.mark.parametrize(
        ("data", "messages"),
        [
            (b"one\ntwo\n", ["one", "two"]),
            (b"one\r\ntwo", ["one", "two"]),
            (b"one \\\ntwo\nthree\n", ["one \ntwo", "three"]),
            (b'"""\none\n\ntwo\n"""\nthree\n', ["one\n\ntwo", "three"]),
            (b'"""one"""\n', ["one"]),
            (b"one\\", ["one"]),
            ("n\u00e9e\n".encode(), ["n\u00e9e"]),
        ],
    )
    def test_messages(self, data: bytes, messages: list[str]) -> None:
        reader = PlainReader(io.BytesIO(data).readline)
        assert [reader.read() for _ in messages] == messages
        with pytest.raises(EOFError):
            reader.read()

    def test_an_end_within_quotes(self) -> None:
        with pytest.raises(RunError, match="ends within"):
            PlainReader(io.BytesIO(b'"""one\n').readline).read()

    def test_what_goes_on(self) -> None:
        assert needs_more("a\\")
        assert needs_more('"""')
        assert needs_more('"""a')
        assert not needs_more('"""a"""')
        assert not needs_more('a """')
        assert message_of('"""\n a \n"""') == " a "


class TestReasoningInPipes:
    """Answers alone go to stdout."""

    ANSWER = "<think>\nhm\n</think>\n\nYes."

    @pytest.mark.parametrize(
        ("shown", "stderr"), [("collapse", ""), ("hide", ""), ("show", "hm\n")]
    )
    def test_reasoning(self, tmp_path: Path, shown: str, stderr: str) -> None:
        prompts = chatml_prompts(tmp_path, CHATML + "{# <think> </think> #}")
        talk, _ = conversation(prompts, [script(prompts, self.ANSWER)])
        output = Output(stdout=io.StringIO(), stderr=io.StringIO())
        view = ViewSettings(reasoning=shown)
        terminal = ChatTerminal(
            talk, output, Lines(["One?"]), PlainView(output, view), is_interactive=False
        )
        terminal.run()
        assert output.stdout.getvalue() == "Yes.\n"
        assert output.stderr.getvalue() == stderr


def test_one_json_object_an_answer(tmp_path: Path) -> None:
    prompts = chatml_prompts(tmp_path, CHATML + "{# <think> </think> #}")
    scripts = [script(prompts, "<think>hm</think>Yes."), script(prompts, "No.")]
    talk, _ = conversation(prompts, scripts)
    output = Output(is_json=True, stdout=io.StringIO(), stderr=io.StringIO())
    view = JsonView(output, talk, "models/x")
    ChatTerminal(talk, output, Lines(["One?", "/system", "Two?"]), view, is_interactive=False).run()
    first, second = (json.loads(line) for line in output.stdout.getvalue().splitlines())
    assert (first["text"], first["reasoning"], first["finish_reason"]) == ("Yes.", "hm", "stop")
    assert second["text"] == "No."
    assert second["usage"]["reused_prompt_tokens"] == 0  # the template left the reasoning out
    assert first["model"] == "models/x"
    assert first["stats"]["engine"] == "bigram"
    assert output.stderr.getvalue() == "system prompt: (none)\n"
