"""What a ticket tells while its answer is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kandiga_run.generation.answer import FinishReason, Token
from kandiga_run.generation.loop import GenerationStats
from kandiga_run.generation.usage import Usage


@dataclass(frozen=True)
class Queued:
    """The request waits; told again whenever its place changes."""

    #: 1 is next
    position: int


@dataclass(frozen=True)
class Prefilled:
    """So much of the prompt has been read; the first one tells what a kept state gave."""

    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """The last event of an answer that ended by itself, or was cancelled."""

    finish_reason: FinishReason | Literal["cancelled"]
    usage: Usage
    #: Times and counters of the steps this answer took part in, also of those shared with others.
    stats: GenerationStats


@dataclass(frozen=True)
class Failed:
    """The last event of an answer that could not be computed."""

    error: Exception


#: A ticket gives any number of the first three, and one of the last two at its end.
Event = Queued | Prefilled | Token | Finished | Failed
