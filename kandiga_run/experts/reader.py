"""Worker threads that bring experts in, and waiting for what they do.

Reading, checksumming and filling page tables all release the interpreter's lock, so plain threads
are enough.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from kandiga_run.engine.stats import RunStats

Job = Callable[[], None]
_Outcome = tuple[int, BaseException | None]

# One O_DIRECT reader already saturates a virtual NVMe disk; page-cache fills and checksums gain
# up to four (x86-64 Linux, 1.77 MB blocks).
DEFAULT_NUM_READERS = 4


class ReaderPool:
    """A fixed set of threads that run jobs in the order they were submitted."""

    def __init__(self, num_readers: int | None = None) -> None:
        count = DEFAULT_NUM_READERS if num_readers is None else num_readers
        if count < 1:
            raise ValueError(f"num_readers is {count}, wanted at least 1")
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"expert-reader-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Run a job on some worker. A job must not raise."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finish what was submitted and end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Pending:
    """The experts of one fetch that workers are bringing in."""

    def __init__(self, readers: ReaderPool, stats: RunStats) -> None:
        self._readers = readers
        self._stats = stats
        self._outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        self._count = 0
        self._num_started = 0
        # One entry a finished job, put there by the workers: counting what was taken from the
        # queue would be off by one after a Ctrl-C between taking and counting.
        self._finished: list[int] = []

    def __bool__(self) -> bool:
        return self._count > 0

    def start(self, expert: int, job: Job) -> None:
        """Let a worker run the job that brings `expert` in."""

        def run() -> None:
            outcome: BaseException | None = None
            try:
                job()
            except BaseException as error:  # raised where the fetch waits
                outcome = error
            self._finished.append(expert)
            self._outcomes.put((expert, outcome))

        self._count += 1
        self._num_started += 1
        self._readers.submit(run)

    def wait(self) -> list[int]:
        """Return the experts that are there, waiting for one; raise what a worker raised."""
        started = time.perf_counter()
        arrived = [self._take(self._outcomes.get())]
        self._stats.read_wait_seconds += time.perf_counter() - started
        while self._count:
            try:
                outcome = self._outcomes.get_nowait()
            except Empty:
                break
            arrived.append(self._take(outcome))
        return arrived

    def drain(self) -> None:
        """Wait until no worker touches this fetch's memory any more; errors are dropped."""
        while len(self._finished) < self._num_started:
            with suppress(Empty):
                self._outcomes.get(timeout=0.01)

    def _take(self, outcome: _Outcome) -> int:
        expert, error = outcome
        self._count -= 1
        if error is not None:
            raise error
        return expert
