"""Answers as plain text: for pipes, files, and terminals that can do no more."""

from __future__ import annotations

from kandiga_run.answers.reply import Chunk, Reply
from kandiga_run.chat.views import ViewSettings
from kandiga_run.terminal.output import Output


class PlainView:
    """Text goes to stdout as it comes; reasoning to stderr, and only if it is to be shown."""

    def __init__(self, output: Output, settings: ViewSettings) -> None:
        self._output, self._settings = output, settings
        self._in_reasoning = False

    def begin(self) -> None:
        """Make ready for an answer."""
        self._in_reasoning = False

    def progress(self, done: int, total: int) -> None:
        """Show how far the prompt has been read, where stderr is a terminal."""
        if done < total:
            self._output.progress("reading the prompt", done, total)
        else:
            self._output.clear_progress()

    def add(self, chunk: Chunk) -> None:
        """Write what became certain."""
        if chunk.reasoning and self._settings.reasoning == "show":
            self._output.side_text(chunk.reasoning)
            self._in_reasoning = True
        if chunk.text:
            self._end_reasoning()
            self._output.text(chunk.text)

    def end(self, reply: Reply | None) -> None:
        """End the line."""
        self._end_reasoning()
        self._output.clear_progress()
        self._output.end_text()

    def _end_reasoning(self) -> None:
        if self._in_reasoning:
            self._output.side_text("\n")
        self._in_reasoning = False
