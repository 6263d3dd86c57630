"""`kandiga-run chat`: messages in, answers out, commands that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Protocol

from kandiga_run.answers.reply import Chunk, Reply
from kandiga_run.chat.commands import COMMANDS, obey
from kandiga_run.chat.conversation import Conversation, Interrupted
from kandiga_run.chat.key_watcher import TOGGLE, KeyWatcher
from kandiga_run.chat.line_input import LineReader
from kandiga_run.chat.settings import chat_settings
from kandiga_run.chat.views import AnswerView, ViewSettings
from kandiga_run.errors import RunError
from kandiga_run.generation.loop import Progress
from kandiga_run.terminal.failures import describe
from kandiga_run.terminal.interrupt import InterruptFlag
from kandiga_run.terminal.output import Output

__all__ = ["COMMANDS", "ChatTerminal", "FastSwitch", "Replier"]


class Replier(Protocol):
    """What begins an answer: a method of Conversation."""

    def __call__(
        self, *, on_progress: Progress | None, between_layers: Callable[[], None] | None = None
    ) -> Generator[Chunk, None, None]:
        """Return the chunks of the answer."""


class FastSwitch(Protocol):
    """What /fast does to the model."""

    is_fast: bool

    def change(self, is_fast: bool) -> None:
        """Compute with half of the experts, or all. Raises RunError."""


class ChatTerminal:
    """Reads messages until the end, answers each, obeys commands."""

    def __init__(
        self,
        conversation: Conversation,
        output: Output,
        reader: LineReader,
        view: AnswerView,
        *,
        is_interactive: bool,
        model: str = "",
        view_settings: ViewSettings | None = None,
        fast: FastSwitch | None = None,
        on_toggle: Callable[[], None] | None = None,
        on_typed: Callable[[str], None] | None = None,
    ) -> None:
        """Talk through `reader` and `view`.

        is_interactive: someone types: Ctrl-C stops the answer, failures keep the session.
            Otherwise Ctrl-C and failures end it, so that a script notices.
        on_toggle: what Ctrl-O does during an answer; with it keys are watched, and what else is
            typed goes to `on_typed`.
        """
        self.conversation, self.output, self.model = conversation, output, model
        self.view_settings = view_settings or ViewSettings()
        self.settings = chat_settings(conversation, self.view_settings)
        self._reader, self._view = reader, view
        self._is_interactive = is_interactive
        self._fast = fast
        self._on_toggle, self._on_typed = on_toggle, on_typed

    def run(self) -> None:
        """Converse until Ctrl-D, the end of the input, or /exit."""
        while True:
            try:
                text = self._reader.read()
                if text:
                    self._guarded(text)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise

    def answer(self, start: Replier) -> None:
        """Show an answer as it comes; Ctrl-C stops it where someone sits."""
        reply: Reply | None = None
        is_stopped = False
        self._view.begin()
        try:
            if self._is_interactive:
                is_stopped = self._stream_until_interrupt(start)
            else:
                for chunk in start(on_progress=self._view.progress):
                    self._view.add(chunk)
            reply = self.conversation.last_reply
        finally:
            self._view.end(reply)
        if is_stopped:
            self.output.notice("stopped")
        self._note_end(reply, is_stopped)
        if self.view_settings.stats:
            obey(self, "/stats")

    def set_fast(self, is_fast: bool | None) -> None:
        """Compute with half of the experts or all of them; None turns it round."""
        if self._fast is None:
            raise RunError("/fast: this engine cannot be changed")
        wanted = not self._fast.is_fast if is_fast is None else is_fast
        if wanted != self._fast.is_fast:
            self._fast.change(wanted)
        stats = self.conversation.engine.stats
        self.output.notice(
            f"fast: {'on' if wanted else 'off'}, {stats.num_experts_per_token} of the model's "
            f"{stats.top_k} experts a token{' (lossy)' if stats.has_fewer_experts else ''}"
        )

    def _say(self, text: str) -> None:
        def start(
            *, on_progress: Progress | None, between_layers: Callable[[], None] | None = None
        ) -> Generator[Chunk, None, None]:
            return self.conversation.reply(
                text, on_progress=on_progress, between_layers=between_layers
            )

        self.answer(start)

    def _stream_until_interrupt(self, start: Replier) -> bool:
        """Show chunks until the end or Ctrl-C; return whether it was pressed."""
        with ExitStack() as stack:
            interrupt = stack.enter_context(InterruptFlag())
            keys = stack.enter_context(KeyWatcher()) if self._on_toggle else None

            def look() -> None:
                self._take(keys)
                if interrupt.is_set:
                    raise Interrupted

            def on_progress(done: int, total: int) -> None:
                self._view.progress(done, total)
                look()

            chunks = start(on_progress=on_progress, between_layers=look)
            try:
                for chunk in chunks:
                    self._view.add(chunk)
                    self._take(keys)
                    if interrupt.is_set:
                        break
            except Interrupted:
                pass
            finally:
                chunks.close()
            return interrupt.is_set

    def _take(self, keys: KeyWatcher | None) -> None:
        """Do what keys pressed since the last time mean."""
        typed = keys.poll() if keys else ""
        if not typed:
            return
        if self._on_toggle and typed.count(TOGGLE) % 2:
            self._on_toggle()
        if self._on_typed:
            self._on_typed(typed.replace(TOGGLE, ""))

    def _note_end(self, reply: Reply | None, is_stopped: bool) -> None:
        if reply is None or is_stopped:
            return
        if reply.finish_reason == "length":
            self.output.notice(
                f"the answer ends at its limit of {len(reply.generation.token_ids)} tokens "
                "(--max-tokens, --context)"
            )
        elif not reply.text and reply.reasoning:
            self.output.notice("the model reasoned and then said nothing")

    def _guarded(self, text: str) -> None:
        """Obey or answer; where someone sits, failures are told and the session goes on."""
        try:
            if text.startswith("/"):
                obey(self, text)
            else:
                self._say(text)
        except (RunError, OSError, KeyboardInterrupt) as error:
            if not self._is_interactive or isinstance(error, BrokenPipeError):
                raise
            self.output.end_text()
            described = describe(error)
            self.output.error(described[0] if described else str(error))
