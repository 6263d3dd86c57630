"""Memory of slots, taken from the system shortly before it is needed.

The first touch of a page is the system's work, not the disk's: 0.1 s a GB, and 1.3 s in a virtual
machine that gives its free memory back to the host (huge pages, Linux 6.18). While a prompt is
read at 3 GB/s that would be most of the time. So a thread touches slots ahead of their use, and
whoever needs one in the meantime takes a slot again that has memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from kandiga_run.experts.huge_memory import HugeMemory

_MADV_POPULATE_WRITE = 23  # Linux 5.14
# Slots that wait for their use. More would take memory that a short run never needs.
_RESERVE_BYTES = 128 << 20
_LEAST_RESERVE = 16
# Below this much a pool is touched as it is used.
_WORTH_A_THREAD_BYTES = 256 << 20
# The thread gives way to those that compute.
_NICENESS = 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class FreeSlots:
    """Numbers of slots that hold no expert, in the order in which they are to be used."""

    def __init__(self, memory: HugeMemory, slot_bytes: int, num_slots: int) -> None:
        self._memory = memory
        self._slot_bytes = slot_bytes
        self._reserve = max(_LEAST_RESERVE, _RESERVE_BYTES // slot_bytes)
        # Of all slots, those that were touched; of the free ones, those that were and were not.
        self._has_memory: set[int] = set()
        self._touched: deque[int] = deque()
        self._untouched = deque(range(num_slots))
        self._changed = threading.Condition()
        self._is_touching = False
        self._closing = False
        self._thread: threading.Thread | None = None
        if sys.platform == "linux" and num_slots * slot_bytes >= _WORTH_A_THREAD_BYTES:
            self._thread = threading.Thread(target=self._work, name="slot-memory", daemon=True)
            self._thread.start()

    @property
    def num_with_memory(self) -> int:
        """Return how many slots, free or not, have been touched."""
        return len(self._has_memory)

    def take(self) -> int | None:
        """Return a slot that has memory, or any where nobody prepares them; None when none is."""
        if self._thread is None:
            return self.take_any()
        with self._changed:
            slot = self._touched.popleft() if self._touched else None
            self._changed.notify_all()
            return slot

    def take_any(self) -> int | None:
        """Return a slot, whether it has memory or not; None when none is free."""
        with self._changed:
            if not self._touched and not self._untouched:
                self._changed.wait_for(lambda: not self._is_touching)
            if self._touched:
                return self._touched.popleft()
            if not self._untouched:
                return None
            slot = self._untouched.popleft()
            self._has_memory.add(slot)
            return slot

    def add(self, slot: int) -> None:
        """Take back a slot."""
        with self._changed:
            self._touched.appendleft(slot)

    @contextmanager
    def changing(self, num_slots: int, used: Collection[int]) -> Iterator[None]:
        """Have the free ones of the first num_slots slots afterwards, those in use left out.

        No slot is touched in the block, where the memory of later ones may be given back.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_touching)
            yield
            self._has_memory.intersection_update(range(num_slots))
            free = [slot for slot in range(num_slots) if slot not in used]
            self._touched = deque(slot for slot in free if slot in self._has_memory)
            self._untouched = deque(slot for slot in free if slot not in self._has_memory)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread. Closing twice is harmless."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (slot := self._next()) is not None:
            start = slot * self._slot_bytes
            _touch(self._memory.address + start, self._slot_bytes)
            with self._changed:
                self._is_touching = False
                self._has_memory.add(slot)
                self._touched.append(slot)
                self._changed.notify_all()

    def _next(self) -> int | None:
        """Wait until a slot should be touched, and return it; None when it is time to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or (self._untouched and len(self._touched) < self._reserve)
            )
            if self._closing:
                return None
            self._is_touching = True
            return self._untouched.popleft()


def _touch(address: int, length: int) -> None:
    """Give a range memory; a hint, never an error. Releases the interpreter's lock."""
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(first, address + length - first, _MADV_POPULATE_WRITE)
