"""How long work tells how far it is; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the advance of one piece of work at a time."""

    def start(self, what: str, total_bytes: int) -> None:
        """Work on `total_bytes` begins; an earlier piece, if any, has ended."""

    def advance(self, num_bytes: int) -> None:
        """So many more bytes are done."""

    def finish(self) -> None:
        """The work begun last has ended, well or not."""


class NoProgress:
    """Draws nothing."""

    def start(self, what: str, total_bytes: int) -> None:
        """Do nothing."""

    def advance(self, num_bytes: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


@contextmanager
def piece_of_work(progress: Progress, what: str, total_bytes: int) -> Iterator[None]:
    """Start a piece of work and finish it, well or not."""
    progress.start(what, total_bytes)
    try:
        yield
    finally:
        progress.finish()
