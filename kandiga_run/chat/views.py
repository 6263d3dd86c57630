"""How an answer is shown: on a terminal, in a pipe, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from kandiga_run.answers.reply import Chunk, Reply

ReasoningView = Literal["show", "collapse", "hide"]


@dataclass
class ViewSettings:
    """What the user may choose about it; views look at it all the time."""

    reasoning: ReasoningView = "collapse"
    markdown: bool = True
    #: figures after every answer
    stats: bool = False


class AnswerView(Protocol):
    """Shows one answer after the other."""

    def begin(self) -> None:
        """Make ready for an answer."""

    def progress(self, done: int, total: int) -> None:
        """Show how far the prompt has been read, in tokens."""

    def add(self, chunk: Chunk) -> None:
        """Show what became certain."""

    def end(self, reply: Reply | None) -> None:
        """Finish the answer; None when there was none. Called once after each `begin`."""
