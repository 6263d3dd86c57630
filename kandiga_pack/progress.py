"""How long work tells how far it is; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

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
