"""Work spread over threads, which stops soon after Ctrl-C or the first failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cancelled(Exception):
    """Raised inside a worker that is no longer wanted; never leaves `map_threads`."""


def map_threads(
    work: Callable[[Item, Callable[[], None]], Result],
    items: Iterable[Item],
    *,
    num_threads: int | None = None,
) -> list[Result]:
    """Return [work(item, checkpoint) for item in items], computed on `num_threads` threads.

    `work` calls `checkpoint()` between steps; once the caller is interrupted or another item has
    failed, that call raises. Leaving a plain executor would wait for gigabytes still to be hashed.

    num_threads: default is the number of processors.
    """
    stop = Event()

    def checkpoint() -> None:
        if stop.is_set():
            raise Cancelled

    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        futures = [pool.submit(work, item, checkpoint) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
