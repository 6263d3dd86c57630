"""All measurements of one call, in order; what is known so far is always in the results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from kandiga_run.bench import page_cache
from kandiga_run.bench.bounds import Ceilings
from kandiga_run.bench.memory_group import GroupUse, MemoryGroup, make_memory_group
from kandiga_run.bench.process import Heard, Progress, run_request
from kandiga_run.bench.request import Cache, Request
from kandiga_run.bench.samples import Figure, add_sample
from kandiga_run.bench.subject import Subject, text_tokens
from kandiga_run.engine.arithmetic import native_arithmetic
from kandiga_run.errors import RunError
from kandiga_run.experts.reader import DEFAULT_NUM_READERS
from kandiga_run.machine.ceilings import (
    DiskCeiling,
    MemoryCeiling,
    disk_ceiling,
    kernel_ceiling,
    memory_ceiling,
)
from kandiga_run.machine.facts import Machine, this_machine
from kandiga_run.memory.use import available_bytes
from kandiga_run.sizes import format_size

# Of a cap, what the engine is not told about: page tables, the kernel's own memory, and pages of
# libraries and of the container that come and go. The larger of the two counts.
_CAP_MARGIN_BYTES = 64 << 20
_CAP_MARGIN_SHARE = 0.03
# Page cache that stayed after it was dropped, as a share of the files: less is not worth a word.
_COLD_SHARE = 0.01
_WARM_SHARE = 0.99
#: Of all processors: less is what an idle desktop uses.
BUSY_SHARE = 0.1
# Of a cap: pages in memory on somebody else's account, below which nothing is said.
_UNCHARGED_SHARE = 0.05
# Of available memory: a container that takes less is read in as a whole before it counts as warm.
_FITS_SHARE = 0.8


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    prefill_tokens: tuple[int, ...]
    depths: tuple[int, ...]
    caches: tuple[Cache, ...]
    #: memory caps in bytes; None is no cap
    caps: tuple[int | None, ...]
    decode_tokens: int
    repeats: int
    cold_repeats: int
    #: no further repeat of a measurement is begun after this time
    seconds: float
    real_depth: bool
    #: Whether the machine's own limits are measured before and after.
    ceilings: bool
    #: keyword arguments of `load_engine`
    engine: dict[str, Any]


@dataclass
class MachineCeilings:
    """What was measured at one moment."""

    memory: MemoryCeiling
    disk: DiskCeiling
    #: multiply-adds a second
    kernels: float


@dataclass
class Measurement:
    """Everything measured under one cap with one state of the page cache."""

    cap_bytes: int | None
    cache: Cache
    #: Whether the cap was kept by a control group; None without a cap.
    cap_enforced: bool | None = None
    heard: list[Heard] = field(default_factory=list)
    group: GroupUse | None = None
    swap_limited: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """Return the figures of all processes, samples of the same kind together."""
        figures: list[Figure] = []
        for heard in self.heard:
            for figure in heard.figures:
                for sample in figure.samples:
                    add_sample(figures, sample)
        return figures

    @property
    def all_notes(self) -> list[str]:
        """Return what to know about this measurement, each thing once."""
        told = [note for heard in self.heard for note in heard.notes]
        return list(dict.fromkeys([*self.notes, *told]))

    @property
    def error(self) -> str | None:
        """Return the first error of a process."""
        return next((heard.error for heard in self.heard if heard.error), None)


@dataclass
class Results:
    """What has been measured so far."""

    subject: Subject
    plan: Plan
    machine: Machine
    before: MachineCeilings | None = None
    after: MachineCeilings | None = None
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    finished: bool = False

    @property
    def ceilings(self) -> Ceilings | None:
        """Return the best of before and after: a fraction must not profit from a bad moment."""
        seen = [each for each in (self.before, self.after) if each]
        if not seen:
            return None
        return Ceilings(
            memory=max(each.memory.best for each in seen),
            disk=max(max(each.disk.random, each.disk.sequential) for each in seen),
            kernels=max(each.kernels for each in seen),
        )

    @property
    def failed(self) -> bool:
        """Whether a measurement ended in an error."""
        return any(measurement.error for measurement in self.measurements)


class Session:
    """Runs a plan. `results` can be read at any time, also after an exception."""

    def __init__(self, subject: Subject, plan: Plan, progress: Progress) -> None:
        self.results = Results(subject, plan, this_machine())
        self._progress = progress
        self._tokens = text_tokens(subject)
        self.results.notes += list(_general_notes(self.results, bool(self._tokens)))

    def run(self) -> None:
        """Measure everything. Raises OSError when the container cannot be read."""
        self.results.before = self._ceilings("before")
        for cap in self.results.plan.caps:
            for cache in self.results.plan.caches:
                self._measure(cap, cache)
        self.results.after = self._ceilings("after")
        self.results.notes += list(_drift_notes(self.results))
        self.results.finished = not self.results.failed

    def _ceilings(self, when: str) -> MachineCeilings | None:
        plan, subject = self.results.plan, self.results.subject
        if not plan.ceilings:
            return None
        self._progress(f"ceilings of the machine ({when})", 0, 3)
        memory = memory_ceiling()
        self._progress(f"ceilings of the machine ({when})", 1, 3)
        depth = plan.engine.get("num_readers") or DEFAULT_NUM_READERS
        disk = disk_ceiling(subject.files, subject.block_bytes, depth)
        self._progress(f"ceilings of the machine ({when})", 2, 3)
        arithmetic = native_arithmetic(plan.engine.get("arithmetic", "auto"))
        return MachineCeilings(memory, disk, kernel_ceiling(arithmetic))

    def _measure(self, cap: int | None, cache: Cache) -> None:
        measurement = Measurement(cap, cache)
        self.results.measurements.append(measurement)
        for request in self._requests(cap, cache):
            heard = Heard(request)
            measurement.heard.append(heard)
            self._prepare_page_cache(measurement)
            with self._group(measurement) as group:
                try:
                    run_request(heard, self._titled(cap, cache), group)
                finally:
                    if group is not None:
                        measurement.group = group.use()
            measurement.notes += _uncharged_notes(measurement)
            if heard.error:
                return

    def _requests(self, cap: int | None, cache: Cache) -> Iterator[Request]:
        """Yield one request a process. What is cold is cold only once in a process."""
        plan = self.results.plan
        if cache == "warm":
            yield self._request(cap, cache, plan.prefill_tokens, plan.depths, plan.repeats)
            return
        for _ in range(plan.cold_repeats):
            if plan.depths or not plan.prefill_tokens:
                yield self._request(cap, cache, (), plan.depths[:1], 1)
            if plan.prefill_tokens:
                yield self._request(cap, cache, (_middle(plan.prefill_tokens),), (), 1)

    def _request(
        self,
        cap: int | None,
        cache: Cache,
        prefill_tokens: tuple[int, ...],
        depths: tuple[int, ...],
        repeats: int,
    ) -> Request:
        plan, subject = self.results.plan, self.results.subject
        engine = dict(plan.engine)
        if cap is not None and engine.get("residency") != "mapped":
            engine["memory_bytes"] = engine_memory(cap)
        return Request(
            folder=str(subject.folder),
            engine=engine,
            cache=cache,
            prefill_tokens=prefill_tokens,
            depths=depths,
            decode_tokens=plan.decode_tokens,
            repeats=repeats,
            seconds=plan.seconds,
            real_depth=plan.real_depth,
            tokens=self._tokens,
            warm_up_bytes=min(engine.get("memory_bytes") or sys.maxsize, subject.expert_bytes),
        )

    def _prepare_page_cache(self, measurement: Measurement) -> None:
        """Drop the container's pages, or read them in; note what did not go as it should."""
        subject = self.results.subject
        # Under a cap pages that are already there would be charged to somebody else.
        if measurement.cache == "cold" or measurement.cap_bytes is not None:
            left = page_cache.drop(subject.files)
            if left.share is None:
                measurement.notes.append(
                    "the system does not say what is in the page cache: "
                    f"{measurement.cache} is a guess"
                )
            elif left.share > _COLD_SHARE:
                measurement.notes.append(
                    f"{format_size(left.resident_bytes or 0)} of {format_size(left.total_bytes)} "
                    "could not be dropped from the page cache (another process has them mapped?): "
                    + ("not really cold" if measurement.cap_bytes is None else "not charged here")
                )
        elif _uses_page_cache(self.results.plan.engine):
            self._bring_in(measurement)

    def _bring_in(self, measurement: Measurement) -> None:
        subject = self.results.subject
        there = page_cache.resident(subject.files)
        absent_bytes = there.total_bytes - (there.resident_bytes or 0)
        if absent_bytes > available_bytes() * _FITS_SHARE:
            measurement.notes.append(
                f"the container ({format_size(there.total_bytes)}) does not fit into the page "
                "cache: warm means after a warm-up"
            )
            return
        self._progress("reading the container into the page cache", 0, 1)
        there = page_cache.bring_in(subject.files)
        if there.share is not None and there.share < _WARM_SHARE:
            measurement.notes.append(f"{there.share:.0%} of the container is in the page cache")

    def _group(self, measurement: Measurement) -> MemoryGroup | nullcontext[None]:
        if measurement.cap_bytes is None:
            return nullcontext()
        try:
            group = make_memory_group(measurement.cap_bytes)
        except RunError as error:
            measurement.cap_enforced = False
            measurement.notes.append(f"the cap is not enforced, page cache does not count: {error}")
            return nullcontext()
        measurement.cap_enforced = True
        measurement.swap_limited = group.swap_limited
        return group

    def _titled(self, cap: int | None, cache: Cache) -> Progress:
        title = cache if cap is None else f"{cache}, {format_size(cap)}"

        def progress(what: str, done: int, total: int) -> None:
            self._progress(f"{title}: {what}", done, total)

        return progress


def engine_memory(cap_bytes: int) -> int:
    """Return the budget an engine gets that must live under a cap with everything it causes."""
    margin_bytes = max(_CAP_MARGIN_BYTES, int(cap_bytes * _CAP_MARGIN_SHARE))
    return max(1, cap_bytes - margin_bytes)


def _uses_page_cache(engine: dict[str, Any]) -> bool:
    return engine.get("residency") != "owned" and engine.get("memory_bytes") is None


def _middle(sizes: tuple[int, ...]) -> int:
    return sorted(sizes)[len(sizes) // 2]


def _general_notes(results: Results, has_text: bool) -> Iterator[str]:
    if results.subject.is_made_up:
        yield (
            "made-up weights and random tokens: the router spreads them evenly, so experts are "
            "reused less than with a real model"
        )
    elif not has_text:
        yield "random tokens: a real text would use experts more unevenly"
    if (results.machine.busy or 0.0) > BUSY_SHARE:
        yield f"others use {results.machine.busy:.0%} of the processors: figures are too low"
    if any(results.plan.depths) and not results.plan.real_depth:
        yield (
            "depths above 0 are made up: caches hold random numbers, which takes as long to decode "
            "on (--real-depth prefills them)"
        )


def _uncharged_notes(measurement: Measurement) -> Iterator[str]:
    """Say when pages of the container were in memory that the cap did not count."""
    group, heard = measurement.group, measurement.heard[-1]
    there = (heard.memory.get("container") or {}).get("resident_bytes")
    if group is None or group.file_bytes is None or there is None:
        return
    uncharged_bytes = there - group.file_bytes
    if uncharged_bytes > _UNCHARGED_SHARE * group.limit_bytes:
        yield (
            f"{format_size(uncharged_bytes)} of the container were in the page cache and charged "
            "to somebody else (another process uses it?): a mapped run was faster than its cap"
        )


# Ceilings differ by this much between two measurements on a quiet machine.
_USUAL_DRIFT = 0.15


def _drift_notes(results: Results) -> Iterator[str]:
    if results.before is None or results.after is None:
        return
    pairs = {
        "memory": (results.before.memory.best, results.after.memory.best),
        "disk": (results.before.disk.random, results.after.disk.random),
    }
    for name, (before, after) in pairs.items():
        if abs(before - after) > _USUAL_DRIFT * max(before, after):
            yield (
                f"the {name} ceiling went from {before / 1e9:.1f} to {after / 1e9:.1f} GB/s during "
                "the measurement: other work on this machine?"
            )
