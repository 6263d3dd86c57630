"""Everything `kandiga-run` prints. Answers go to stdout, all else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

PROGRAM = "kandiga-run"

#: Control characters but tab and newline: a model must not be able to drive the terminal.
_CONTROL = dict.fromkeys(
    [*range(9), *range(11, 32), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}"
)


def harmless(text: str) -> str:
    """Return text without control characters but tab and newline, for a terminal."""
    return text.translate(_CONTROL)


class Output:
    """Prints for one invocation, in the way its options and streams ask for."""

    def __init__(
        self,
        *,
        is_json: bool = False,
        is_quiet: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        """Print to the process's own streams unless others are given.

        Args:
            is_json: stdout carries one JSON object, not text.
            is_quiet: no notices and no progress; errors remain.
        """
        self.is_json, self.is_quiet = is_json, is_quiet
        #: details, too
        self.is_verbose = False
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self._is_terminal = self.stdout.isatty()
        self._ends_with_newline = True
        self._has_progress = False

    def text(self, text: str) -> None:
        """Write a piece of an answer at once, harmless to a terminal."""
        if self.is_json or not text:
            return
        self.clear_progress()
        # Ctrl-C may strike before, within or after the write: a newline too many does no harm.
        self._ends_with_newline = False
        self._write(harmless(text) if self._is_terminal else text)
        self._ends_with_newline = text.endswith("\n")

    def side_text(self, text: str) -> None:
        """Write a piece of what accompanies an answer, to stderr."""
        if not self.is_quiet:
            self.clear_progress()
            is_terminal = self.stderr.isatty()
            self.stderr.write(f"\x1b[2m{harmless(text)}\x1b[0m" if is_terminal else text)
            self.stderr.flush()

    def end_text(self) -> None:
        """End the answer with a newline unless it has one."""
        if not self._ends_with_newline:
            self.text("\n")

    def json(self, value: dict[str, Any]) -> None:
        """Write the result object."""
        self._write(json.dumps(value, ensure_ascii=False) + "\n")

    def notice(self, text: str) -> None:
        """Tell the user something that is neither answer nor error."""
        if not self.is_quiet:
            self.clear_progress()
            print(text, file=self.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Tell who asked for --verbose what was found or chosen."""
        if self.is_verbose:
            self.notice(f"{PROGRAM}: {text}")

    def error(self, text: str) -> None:
        """Print the one line of a failure."""
        self.clear_progress()
        print(f"{PROGRAM}: {text}", file=self.stderr, flush=True)

    def table(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Print names and values as two aligned columns."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left", show_header=False, box=None)
        table.add_column(style="dim")
        table.add_column()
        for name, value in rows:
            table.add_row(name, value)
        Console(file=self.stderr, highlight=False).print(table)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a long step is, on a terminal only; the next output replaces it."""
        if self.is_quiet or not self.stderr.isatty():
            return
        self.stderr.write(f"\r\x1b[K{what} {done}/{total}")
        self.stderr.flush()
        self._has_progress = True

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show on a terminal what takes a few seconds, until it is done."""
        if not self.is_quiet and self.stderr.isatty():
            self.stderr.write(f"\r\x1b[K{what} ...")
            self.stderr.flush()
            self._has_progress = True
        try:
            yield
        finally:
            self.clear_progress()

    def _write(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def clear_progress(self) -> None:
        """Take the progress line away."""
        if self._has_progress:
            self.stderr.write("\r\x1b[K")
            self.stderr.flush()
            self._has_progress = False
