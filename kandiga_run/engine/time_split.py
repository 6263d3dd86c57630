"""Where the time goes: counted in the kernels, added to an engine's stats, told as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from cython_kernels import time_totals
from kandiga_run.engine.stats import KERNEL_TIMES, RunStats


@contextmanager
def timed_forward(stats: RunStats) -> Iterator[None]:
    """Add the time in the block to `stats`, split by what kernels were called for.

    The kernels count by thread, so the block must stay in the thread that computes.
    """
    before, started = time_totals(), perf_counter()
    try:
        yield
    finally:
        stats.forward_seconds += perf_counter() - started
        stats.add_kernel_times([b - a for a, b in zip(before, time_totals(), strict=True)])


def time_split_json(run: RunStats) -> dict[str, float]:
    """Return the seconds of a phase by what they were spent on; they do not overlap."""
    kernels = {name.removesuffix("_seconds"): getattr(run, name) for name in KERNEL_TIMES}
    return {
        **kernels,
        "read_wait": run.read_wait_seconds,
        "sampling": run.sampling_seconds,
        "other": run.other_seconds,
    }
