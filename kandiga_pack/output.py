"""The only place that prints: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.progress import NoProgress, Progress


@dataclass(frozen=True)
class Output:
    """How a command talks.

    json: results as one JSON object on stdout, for programs.
    quiet: no results for people and no progress; errors still appear.
    verbose: progress as lines where no bar can be drawn, as in a log.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def progress(self) -> Progress:
        """Return a bar on a terminal, and nothing where a bar would only fill a log."""
        if self.quiet:
            return NoProgress()
        if not self.json and sys.stderr.isatty():
            return BarProgress()
        return LineProgress() if self.verbose else NoProgress()

    def say(self) -> Callable[[str], None] | None:
        """Return what tells of long work on a terminal, None where nobody looks."""
        if self.json or self.quiet or not sys.stderr.isatty():
            return None
        return partial(print, file=sys.stderr)

    def note(self, line: str) -> None:
        """Tell what the user should know before the result is there."""
        if not self.quiet:
            print(f"kandiga-pack: {line}", file=sys.stderr)

    def result(self, facts: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Print a result: `facts` for programs, or what `show` draws for people."""
        if self.json:
            print(json.dumps(facts, indent=2), flush=True)
        elif not self.quiet:
            show(Console(highlight=False, soft_wrap=True))

    def error(self, message: str, code: ExitCode) -> None:
        """Print an error, one line; programs also get it on stdout."""
        if self.json:
            print(
                json.dumps({"ok": False, "error": message, "exit_code": int(code)}, indent=2),
                flush=True,
            )
        print(f"kandiga-pack: {message}", file=sys.stderr)

    def finding(self, message: str) -> None:
        """Print one fault of a container."""
        if not self.json:
            print(message, file=sys.stderr)


class BarProgress:
    """tqdm bars with bytes a second, one at a time."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def start(self, what: str, total_bytes: int) -> None:
        """Begin a bar."""
        self.finish()
        self._bar = tqdm(
            total=total_bytes, desc=what, unit="B", unit_scale=True, leave=False, file=sys.stderr
        )

    def advance(self, num_bytes: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(num_bytes)

    def finish(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LineProgress:
    """A line for each tenth of a piece of work."""

    def __init__(self) -> None:
        self._what = ""
        self._total_bytes = self._done_bytes = self._tenths = 0

    def start(self, what: str, total_bytes: int) -> None:
        """Begin to count."""
        self._what, self._total_bytes = what, total_bytes
        self._done_bytes = self._tenths = 0

    def advance(self, num_bytes: int) -> None:
        """Count, and print a line if another tenth is done."""
        self._done_bytes += num_bytes
        tenths = 10 * self._done_bytes // max(self._total_bytes, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            line = f"kandiga-pack: {self._what} {tenths * 10}% of {self._total_bytes} bytes"
            print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Do nothing: the last tenth has said it."""


def two_columns(title: str, rows: list[tuple[str, str]]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table
