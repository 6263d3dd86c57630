"""Figures of a scheduler, for metrics and a page."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic

#: Rates are those of the work of this long.
_WINDOW_SECONDS = 30.0
# Answers whose durations are remembered, to guess when a place becomes free.
_REMEMBERED = 32


@dataclass(frozen=True)
class Status:
    """What the scheduler does at the moment, and has done."""

    running: int
    waiting: int
    max_running: int
    max_waiting: int
    context_tokens: int
    #: requests that came, and how they ended
    submitted: int
    finished: int
    cancelled: int
    failed: int
    refused: int
    #: finished answers by how keys and values were held at their end, such as "f16" or "k4v3"
    finished_by_kv: Mapping[str, int]
    #: tokens of all requests so far
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    #: tokens per second of work in the last half minute, all sequences together; None: none
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    #: keys, values and recurrent state of the running sequences
    state_bytes: int
    #: kept states of prompts seen before
    cache_entries: int
    cache_bytes: int
    cache_capacity_bytes: int
    cache_hits: int
    cache_misses: int


class Rate:
    """Tokens over the seconds spent on them, of the last half minute."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int, float]] = deque()

    def add(self, tokens: int, seconds: float) -> None:
        """Count work that has just been done."""
        now = monotonic()
        self._steps.append((now, tokens, seconds))
        while self._steps[0][0] < now - _WINDOW_SECONDS:
            self._steps.popleft()

    @property
    def per_second(self) -> float | None:
        """Return tokens per second of work, or None without any."""
        oldest = monotonic() - _WINDOW_SECONDS
        steps = [step for step in self._steps.copy() if step[0] >= oldest]
        seconds = sum(step[2] for step in steps)
        return sum(step[1] for step in steps) / seconds if seconds > 0 else None


@dataclass
class Counters:
    """What has been counted since the scheduler began."""

    submitted: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished_by_kv: Counter[str] = field(default_factory=Counter)
    prefill_rate: Rate = field(default_factory=Rate)
    decode_rate: Rate = field(default_factory=Rate)
    #: how long the latest answers took, in seconds
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
