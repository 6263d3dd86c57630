"""Anonymous memory in huge pages: what kernels read fastest, and what a budget can count on."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

from kandiga_run.experts.pages import HUGE_PAGE, address_of

# On macOS MADV_DONTNEED keeps anonymous pages; MADV_FREE lets the system take them.
_MADV_GIVE_BACK = mmap.MADV_FREE if sys.platform == "darwin" else mmap.MADV_DONTNEED


class HugeMemory:
    """Zeroed private memory that begins at a huge page.

    Address space is reserved at once and costs nothing; memory is charged where it is first
    written, a huge page at a time where the system has them (or never, with huge=False).
    """

    def __init__(self, nbytes: int, *, huge: bool = True) -> None:
        self._memory = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=_map_flags())
        whole = memoryview(self._memory)
        address = address_of(whole)
        self._start = -address % HUGE_PAGE
        self.address = address + self._start
        #: the bytes, writable
        self.view = whole[self._start : self._start + nbytes]
        whole.release()
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Refused by kernels built without transparent huge pages.
            with suppress(OSError):
                advice = mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE
                self._memory.madvise(advice, self._start, max(nbytes, 1))

    def give_back(self, start: int, end: int) -> None:
        """Return the whole pages within [start, end) to the system; they read as zeros again."""
        first = -(-(self._start + start) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (self._start + end) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._memory.madvise(_MADV_GIVE_BACK, first, last - first)

    def close(self) -> None:
        """Give all memory back. An exception somebody keeps may still hold a view of it."""
        self.give_back(0, len(self.view))
        self.view.release()
        with suppress(BufferError):
            self._memory.close()


def _map_flags() -> int:
    # No swap reservation: more address space may be reserved than will ever be filled.
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
