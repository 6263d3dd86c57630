"""Which settings are tried, in which order, until the time is over.

One thing at a time, the one that matters most first: where experts live and how much memory they
have, then reads in flight, then threads. The best so far is kept while the next thing is varied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kandiga_run.tune.outcome import Outcome, Trial
from kandiga_run.tune.settings import Settings

# A cache has a best size, which need not be the largest: halves first, then between the best ones.
_NUM_HALVES = 5
_REFINEMENTS = 2
# Budgets closer together than this are the same.
_LEAST_STEP = 0.12
_READERS = (1, 2, 8, 16)
# The usual settings and the best ones take turns this often before one is called faster.
_DUELS = 2

#: A setting that is a number of threads.
Count = Literal["num_readers", "num_threads"]
#: Measures settings within so many seconds.
Measure = Callable[[Settings, float], Trial]


@dataclass(frozen=True)
class Room:
    """What this machine allows."""

    #: of a budget, the largest that leaves the machine alive
    most_bytes: int
    #: of a budget, from here on nothing is read twice
    enough_bytes: int
    #: Whether mapped experts fit into memory.
    can_map: bool
    #: processors
    num_cpus: int
    #: readers without a choice
    num_readers: int
    #: budget the user set for everything, or None
    limit_bytes: int | None = None


class Search:
    """Tries settings; `outcome` can be read at any time, also after an interruption."""

    def __init__(self, measure: Measure, room: Room, seconds: float) -> None:
        self.outcome = Outcome()
        self._measure = measure
        self._room = room
        self._deadline = time.monotonic() + seconds
        self._longest_seconds = 0.0
        # Trials that there must be time for at the end: one duel.
        self._kept_for = 2

    def run(self) -> None:
        """Make all trials there is time for."""
        steps = (self._residency, self._sizes, self._readers, self._threads)
        usual = Settings(memory_bytes=self._room.limit_bytes)
        if not self.outcome.put(self._timed(usual, self._deadline - time.monotonic())).speeds:
            return
        all_tried = all(step() for step in steps)
        self._kept_for = 0
        self.outcome.finished = self._duels() and all_tried
        if not self.outcome.finished:
            self.outcome.notes.append("the time was over before everything was tried")

    def _residency(self) -> bool:
        """Try experts in the page cache."""
        if not self._room.can_map or self._usual().residency == "mapped":
            return True
        return self._try(Settings(residency="mapped")) is not None

    def _sizes(self) -> bool:
        """Try pools of experts of falling sizes, then sizes around the best."""
        sizes = [size for size in self._halves() if self._is_new(size)]
        for size in sizes:
            trial = self._try(_owned(size))
            if trial is None:
                return False
            if trial.error:  # smaller ones work even less
                break
        for _ in range(_REFINEMENTS):
            between = next(self._between(), None)
            if between is None:
                return True
            if self._try(_owned(between)) is None:
                return False
        return True

    def _halves(self) -> Iterator[int]:
        most = min(self._room.most_bytes, self._room.enough_bytes)
        for number in range(_NUM_HALVES):
            yield most >> number

    def _between(self) -> Iterator[int]:
        """Yield sizes halfway from the best pool to its neighbours, the faster neighbour first."""
        pools = {t.settings.memory_bytes or 0: t for t in self._trials() if t.settings.memory_bytes}
        best = self._best().settings.memory_bytes
        if best is None:
            return
        below = max((size for size in pools if size < best), default=None)
        above = min((size for size in pools if size > best), default=None)
        if not pools[best].bytes_read_per_token:
            above = None  # it holds everything
        neighbours = [size for size in (below, above) if size is not None]
        for size in sorted(neighbours, key=lambda each: pools[each].exchange_seconds):
            if self._is_new(middle := (size + best) // 2):
                yield middle

    def _is_new(self, size: int) -> bool:
        tried = (trial.settings.memory_bytes for trial in self.outcome.trials)
        return size > 0 and all(
            abs(size - known) > _LEAST_STEP * size for known in tried if known is not None
        )

    def _readers(self) -> bool:
        """Try fewer and more reads in flight, where there are any."""
        if not self._best().bytes_read_per_token:
            return True
        usual = self._room.num_readers
        fewer = [count for count in reversed(_READERS) if count < usual]
        more = [count for count in _READERS if count > usual]
        return self._while_faster("num_readers", fewer) and self._while_faster("num_readers", more)

    def _threads(self) -> bool:
        """Try fewer threads than processors: two of a core's may be slower than one."""
        num_cpus = self._room.num_cpus
        counts = sorted({count for count in (num_cpus - 1, num_cpus // 2) if count > 0})
        return self._while_faster("num_threads", counts[::-1])

    def _while_faster(self, name: Count, values: Sequence[int]) -> bool:
        """Try values of a setting until one is not faster than the best before it."""
        for value in values:
            best = self._best()
            trial = self._try(best.settings.with_count(name, value))
            if trial is None:
                return False
            if trial.exchange_seconds >= best.exchange_seconds:
                break
        return True

    def _duels(self) -> bool:
        """Measure the usual settings and the fastest again, in turns: machines have moods."""
        fastest = self._best()
        if fastest.settings == self._usual().settings:
            return True
        for _ in range(_DUELS):
            for settings in (self._usual().settings, fastest.settings):
                if self._try(settings) is None:
                    return False
        return True

    def _try(self, settings: Settings) -> Trial | None:
        """Measure settings; None when they would not be ready in time."""
        left = self._deadline - time.monotonic() - self._kept_for * self._longest_seconds
        if left < self._longest_seconds:
            return None
        return self.outcome.put(self._timed(settings, left))

    def _timed(self, settings: Settings, seconds: float) -> Trial:
        started = time.monotonic()
        trial = self._measure(settings, seconds)
        self._longest_seconds = max(self._longest_seconds, time.monotonic() - started)
        return trial

    def _trials(self) -> list[Trial]:
        return [trial for trial in self.outcome.trials if trial.speeds and not trial.error]

    def _usual(self) -> Trial:
        return self.outcome.trials[0]

    def _best(self) -> Trial:
        return min(self._trials(), key=lambda trial: trial.exchange_seconds)


def _owned(memory_bytes: int) -> Settings:
    return Settings(residency="owned", memory_bytes=memory_bytes)
