"""Bounds on time and memory, and how they are measured."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

MAX_SECONDS = 1.0
# The worst that the format's limits allow: a section of 16 MiB beside its frame, and 2^18 values of
# JSON as objects and spelled again.
MAX_BYTES = 128 << 20
BYTES_FACTOR = 4
_PAGE_BYTES = 4096


@dataclass
class Cost:
    """The most that any guarded call took."""

    seconds: float = 0.0
    peak_bytes: int = 0


def guarded(
    problems: list[str], who: str, run: Callable[[], Result], size: int, cost: Cost | None = None
) -> Result | None:
    """Return run(), or None and a problem if it raised; too long and too much are problems too.

    size: bytes of the input.
    """
    allowed = MAX_BYTES + BYTES_FACTOR * size
    try:
        result, seconds, peak = measured(run)
        if seconds > MAX_SECONDS or peak > allowed:
            # Once more: a neighbour's work, or an import, may have been in it.
            result, seconds, peak = measured(run)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        problems.append(f"{who}: {type(error).__name__} at {where}: {str(error)[:200]}")
        return None
    if cost is not None:
        cost.seconds = max(cost.seconds, seconds)
        cost.peak_bytes = max(cost.peak_bytes, peak)
    if seconds > MAX_SECONDS:
        problems.append(f"{who}: took {seconds:.2f} s, at most {MAX_SECONDS}")
    if peak > allowed:
        problems.append(f"{who}: took {peak >> 20} MiB for {size} bytes of input")
    return result


def measured(run: Callable[[], Result]) -> tuple[Result, float, int]:
    """Return (result, seconds of processor time, bytes by which resident memory rose meanwhile)."""
    before = _forget_peak()
    start = time.process_time()
    result = run()
    return result, time.process_time() - start, max(0, _peak_bytes() - before)


def _forget_peak() -> int:
    """Begin counting the peak anew, and return what is resident; 0 where Linux is not."""
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except OSError:
        return 0
    return _peak_bytes()


def _peak_bytes() -> int:
    try:
        with open("/proc/self/status", "rb") as stream:
            status = stream.read()
    except OSError:
        return 0
    return int(status.partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024


@contextlib.contextmanager
def reads_inside_files(problems: list[str]) -> Iterator[None]:
    """Note every read beyond the end of its file, or of its last page: some are direct."""
    preadv = os.preadv

    def checked(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        wanted = sum(memoryview(each).nbytes for each in buffers)
        size = os.fstat(fd).st_size
        if offset < 0 or offset + wanted > size + -size % _PAGE_BYTES:
            problems.append(f"reader: {wanted} bytes wanted at {offset}, beyond the file")
        return preadv(fd, buffers, offset, *flags)

    os.preadv = checked
    try:
        yield
    finally:
        os.preadv = preadv
