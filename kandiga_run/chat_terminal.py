"""`kandiga-run chat`: lines in, answers out, commands that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from kandiga_run.chat import Conversation, Interrupted
from kandiga_run.errors import RunError
from kandiga_run.failures import describe
from kandiga_run.interrupt import InterruptFlag
from kandiga_run.output import Output
from kandiga_run.report import stats_rows
from kandiga_run.standard_input import decode_input

#: Returns the next line; raises EOFError at the end and KeyboardInterrupt to drop the line.
LineReader = Callable[[], str]


class ChatTerminal:
    """Reads lines until the end, answers each, obeys commands."""

    def __init__(
        self,
        conversation: Conversation,
        output: Output,
        read_line: LineReader,
        *,
        is_interactive: bool,
        shows_stats: bool = False,
    ) -> None:
        """Talk through `read_line` and `output`.

        Args:
            is_interactive: someone types: Ctrl-C stops the answer, failures keep the session.
                Otherwise Ctrl-C and failures end it, so that a script notices.
            shows_stats: print the figures after every answer.
        """
        self._conversation, self._output, self._read_line = conversation, output, read_line
        self._is_interactive, self._shows_stats = is_interactive, shows_stats

    def run(self) -> None:
        """Converse until Ctrl-D, the end of the input, or /exit."""
        while True:
            try:
                line = self._read_line().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if self._is_interactive:
                    continue
                raise
            if line == "/exit":
                return
            if line.startswith("/"):
                self._obey(line)
            elif line:
                self._answer(line)

    def _answer(self, text: str) -> None:
        try:
            self._stream(text)
        except RunError as error:
            if not self._is_interactive:
                raise
            self._report(error)
        except KeyboardInterrupt as error:
            if not self._is_interactive:
                raise
            self._output.end_text()
            self._report(error)
        if self._shows_stats:
            self._stats("")

    def _stream(self, text: str) -> None:
        if not self._is_interactive:
            for token in self._conversation.reply(text, on_progress=self._progress):
                self._output.text(token.text)
            self._output.end_text()
            self._note_length()
            return
        with InterruptFlag() as interrupt:

            def on_progress(done: int, total: int) -> None:
                self._progress(done, total)
                if interrupt.is_set:
                    raise Interrupted

            reply = self._conversation.reply(text, on_progress=on_progress)
            try:
                for token in reply:
                    self._output.text(token.text)
                    if interrupt.is_set:
                        break
            except Interrupted:
                pass
            finally:
                reply.close()
        self._output.end_text()
        if interrupt.is_set:
            self._output.notice("stopped")
        self._note_length()

    def _note_length(self) -> None:
        generation = self._conversation.last
        if generation is not None and generation.finish_reason == "length":
            self._output.notice(
                f"the answer ends at its limit of {len(generation.token_ids)} tokens "
                "(--max-tokens, --context)"
            )

    def _progress(self, done: int, total: int) -> None:
        if done < total:
            self._output.progress("reading the prompt", done, total)
        else:
            self._output.clear_progress()

    def _report(self, error: BaseException) -> None:
        described = describe(error)
        self._output.error(described[0] if described else str(error))

    def _obey(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            self._output.notice(f"{name}: no such command; /help lists them")
            return
        command.action(self, argument.strip())

    def _reset(self, argument: str) -> None:
        self._conversation.reset()
        self._output.notice("conversation forgotten")

    def _system(self, argument: str) -> None:
        if argument:
            self._conversation.system = None if argument == "none" else argument
        self._output.notice(f"system prompt: {self._conversation.system or '(none)'}")

    def _stats(self, argument: str) -> None:
        generation = self._conversation.last
        if generation is None:
            self._output.notice("no answer yet")
            return
        rows = stats_rows(self._conversation.engine, generation.state, generation.stats)
        self._output.table("last answer", rows)

    def _help(self, argument: str) -> None:
        for name, command in COMMANDS.items():
            self._output.notice(f"{name + ' ' + command.argument:<16} {command.help}")
        self._output.notice("Ctrl-C stops an answer, Ctrl-D leaves")


@dataclass(frozen=True)
class Command:
    """A slash command."""

    action: Callable[[ChatTerminal, str], None]
    help: str
    argument: str = ""


COMMANDS = {
    "/help": Command(ChatTerminal._help, "this list"),
    "/reset": Command(ChatTerminal._reset, "forget the conversation, keep the system prompt"),
    "/system": Command(
        ChatTerminal._system, 'show or set the system prompt ("none" removes it)', "[TEXT]"
    ),
    "/stats": Command(ChatTerminal._stats, "figures of the last answer"),
    "/exit": Command(lambda terminal, argument: None, "leave, as Ctrl-D does"),
}


def line_reader(output: Output) -> tuple[LineReader, bool]:
    """Return what reads the user's lines, and whether a person types them.

    An editable line with history needs a terminal on both sides.
    """
    if not (sys.stdin.isatty() and output.stdout.isatty()):
        return _read_plain_line, False
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    session: PromptSession[str] = PromptSession(history=InMemoryHistory())
    return lambda: session.prompt("> "), True


def _read_plain_line() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return decode_input(line)
