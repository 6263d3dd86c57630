"""Written data sent to the disk while more is being written."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

_STEP_BYTES = 128 << 20


class Flusher:
    """Keeps the dirty pages of a file few, so that its last fsync does not wait for gigabytes.

    The kernel tells an open file of a failed write-back once. So the error is kept here and raised
    by `wait`: an fsync that comes later would succeed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kexp-flush")
        self._lock = Lock()
        self._dirty_bytes = 0
        self._flush: Future[None] | None = None

    def wrote(self, fd: int, count: int) -> None:
        """Count bytes written to `fd`; begins a flush when they are many. For any thread."""
        with self._lock:
            self._dirty_bytes += count
            busy = self._flush is not None and not self._flush.done()
            if busy or self._dirty_bytes < _STEP_BYTES:
                return
            if self._flush is not None:
                self._flush.result()
            self._dirty_bytes = 0
            self._flush = self._thread.submit(_flush_data, fd)

    def wait(self) -> None:
        """Wait for the flush under way; OSError if it, or one before it, failed."""
        with self._lock:
            if self._flush is not None:
                self._flush.result()

    def close(self) -> None:
        """Stop the thread, which may still use a file descriptor until then."""
        self._thread.shutdown()


def _flush_data(fd: int) -> None:
    if hasattr(os, "fdatasync"):  # macOS has fsync only
        os.fdatasync(fd)
    else:
        os.fsync(fd)
