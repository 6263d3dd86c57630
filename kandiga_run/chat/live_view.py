"""An answer on a terminal, as it is written: markdown, reasoning dimmed, a status line below."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from time import perf_counter
from typing import TextIO

from rich.console import Console

from kandiga_run.answers.reply import Chunk, Reply
from kandiga_run.chat.live_region import LiveRegion
from kandiga_run.chat.markdown_lines import LineRenderer, split_blocks
from kandiga_run.chat.views import ViewSettings
from kandiga_run.terminal.output import harmless

#: Between two drawings: more often than this nobody reads, and rendering costs milliseconds.
_SECONDS = 0.05
#: Lines at the end of an unfinished block that are still rewritten.
_LIVE_LINES = 6
_REASONING_STYLE = "dim italic"


class LiveView:
    """Shows one answer after the other on a terminal."""

    def __init__(
        self, stream: TextIO, settings: ViewSettings, *, status: Callable[[], str] = lambda: ""
    ) -> None:
        """Write to a terminal.

        status: the last line while an answer is written, looked up at every drawing.
        """
        self._settings, self._status = settings, status
        self._stream = stream
        self._region = LiveRegion(stream)
        self._color_system = Console(file=stream).color_system
        self.begin()

    def begin(self) -> None:
        """Make ready for an answer."""
        self._renderer = LineRenderer(self._size()[0], self._color_system)
        self._thoughts = _Thoughts(self._renderer)
        self._text = _StreamedMarkdown(self._renderer)
        self._progress = ""
        self._has_begun = False
        self._next_drawing = 0.0

    def progress(self, done: int, total: int) -> None:
        """Show how far the prompt has been read."""
        self._progress = f"reading the prompt {done}/{total}" if done < total else ""
        self._draw(force=True)

    def add(self, chunk: Chunk) -> None:
        """Show what became certain."""
        self._progress = ""
        self._thoughts.add(harmless(chunk.reasoning))
        self._text.add(harmless(chunk.text))
        self._draw()

    def toggle_reasoning(self) -> None:
        """Show the reasoning, or fold it up again."""
        settings = self._settings
        settings.reasoning = "collapse" if settings.reasoning == "show" else "show"
        self._draw(force=True)

    def show_reasoning(self, text: str) -> None:
        """Show the reasoning of an earlier answer."""
        for line in self._renderer.text(harmless(text), _REASONING_STYLE):
            self._stream.write(line + "\n")
        self._stream.flush()

    def end(self, reply: Reply | None) -> None:
        """Finish the answer."""
        settled = [*self._thoughts.finish(self._settings), *self._text.finish(self._settings)]
        self._region.draw([*settled, ""], [])
        self._region.close()

    def _draw(self, *, force: bool = False) -> None:
        now = perf_counter()
        if now < self._next_drawing and not force:
            return
        height = self._size()[1]
        settled: list[str] = []
        live: list[str] = []
        if self._text.is_empty:
            settled, live = self._thoughts.lines(self._settings)
        else:
            settled = self._thoughts.finish(self._settings)
            more, live = self._text.lines(self._settings)
            settled += more
        live = live[-max(1, height - 4) :]
        status = self._progress or self._status()
        status_lines = ["", self._renderer.line(status, "dim")] if status else []
        self._region.draw(settled, [*live, *status_lines])
        # A long table or piece of code takes longer to render: a tenth of the time at most.
        self._next_drawing = now + max(_SECONDS, 9 * (perf_counter() - now))

    def _size(self) -> tuple[int, int]:
        size = shutil.get_terminal_size()
        return size.columns, size.lines


class _Thoughts:
    """The reasoning of one answer."""

    def __init__(self, renderer: LineRenderer) -> None:
        self._renderer = renderer
        self._text = ""
        self._began = 0.0
        self._num_chunks = 0
        self._num_settled = 0
        self._is_finished = False

    def add(self, text: str) -> None:
        """Take in more of it."""
        if text and not self._text:
            self._began = perf_counter()
        self._text += text
        self._num_chunks += bool(text)

    def lines(self, settings: ViewSettings) -> tuple[list[str], list[str]]:
        """Return the lines that are complete since the last call, and those that may change."""
        if not self._text:
            return [], []
        if settings.reasoning != "show":
            last = self._text.rsplit("\n", 1)[-1]
            words = (
                f"thinking, {self._seconds():.0f} s: " if settings.reasoning == "collapse" else ""
            )
            return [], [
                self._renderer.line(f"{words}{last}" if words else "thinking", _REASONING_STYLE)
            ]
        lines = self._renderer.text(self._text, _REASONING_STYLE)
        # The last line may still grow.
        settled, self._num_settled = lines[self._num_settled : -1], max(0, len(lines) - 1)
        return settled, lines[-1:]

    def finish(self, settings: ViewSettings) -> list[str]:
        """Return what is left to show, once; a blank line parts it from the answer."""
        if self._is_finished or not self._text:
            return []
        self._is_finished = True
        if settings.reasoning == "hide" and not self._num_settled:
            return []
        if settings.reasoning == "show":
            rest = self._renderer.text(self._text, _REASONING_STYLE)[self._num_settled :]
        else:
            rest = [
                self._renderer.line(
                    f"▸ thought for {self._seconds():.0f} s (Ctrl-O shows it)", _REASONING_STYLE
                )
            ]
        return [*rest, ""]

    def _seconds(self) -> float:
        return perf_counter() - self._began


class _StreamedMarkdown:
    """The text of one answer. Blocks that are complete are rendered once and for all."""

    def __init__(self, renderer: LineRenderer) -> None:
        self._renderer = renderer
        self._source = ""
        self.is_empty = True
        #: Lines of the first block in `_source` that have been given out as complete.
        self._num_settled = 0
        self._has_blocks = False

    def add(self, text: str) -> None:
        """Take in more of it."""
        self._source += text
        self.is_empty = self.is_empty and not text

    def lines(self, settings: ViewSettings) -> tuple[list[str], list[str]]:
        """Return the lines that are complete since the last call, and those that may change."""
        *complete, last = self._blocks(settings) or [""]
        settled = [line for block in complete for line in self._settle(block, settings)]
        self._source = last
        rest = self._block_lines(last, settings)
        # A table's columns grow with every row: its lines stay open to the end.
        if "|" not in last and len(rest) > _LIVE_LINES:
            settled += rest[: len(rest) - _LIVE_LINES]
            self._num_settled += len(rest) - _LIVE_LINES
            rest = rest[-_LIVE_LINES:]
        return settled, rest

    def finish(self, settings: ViewSettings) -> list[str]:
        """Return all lines that are left."""
        return [line for block in self._blocks(settings) for line in self._settle(block, settings)]

    def _blocks(self, settings: ViewSettings) -> list[str]:
        return split_blocks(self._source) if settings.markdown else [self._source]

    def _settle(self, block: str, settings: ViewSettings) -> list[str]:
        lines = self._block_lines(block, settings)
        self._has_blocks |= bool(lines) or self._num_settled > 0
        self._num_settled = 0
        return lines

    def _block_lines(self, block: str, settings: ViewSettings) -> list[str]:
        """Return the lines of a block that are not settled yet, a blank one before a further."""
        render = self._renderer.markdown if settings.markdown else self._renderer.text
        lines = render(block)
        if lines and self._has_blocks:
            lines.insert(0, "")
        return lines[self._num_settled :]
