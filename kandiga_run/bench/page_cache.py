"""The page cache of files: what of them is in it, taking it out, bringing it in."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kandiga_run.experts.pages import absent_bytes, address_of, read_into_page_cache

_PIECE_BYTES = 2 << 20
# mincore is asked about this much at a time: its answers take a byte a page.
_ASK_BYTES = 1 << 30
_NUM_READERS = 4


@dataclass(frozen=True)
class Resident:
    """How much of some files is in the page cache."""

    total_bytes: int
    #: None when the system does not tell this user
    resident_bytes: int | None

    @property
    def share(self) -> float | None:
        """Return the resident part of all bytes, None when unknown."""
        if self.resident_bytes is None or not self.total_bytes:
            return None
        return self.resident_bytes / self.total_bytes


def resident(paths: Sequence[Path]) -> Resident:
    """Return how much of the files is in the page cache. Raises OSError."""
    total, present, known = 0, 0, True
    for path in paths:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            total += size
            if not _is_told(path, file.fileno()):
                known = False
            elif size:
                present += _resident_bytes(file.fileno(), size)
    return Resident(total, present if known else None)


def drop(paths: Sequence[Path]) -> Resident:
    """Ask the kernel to drop the files' clean pages; return what stayed.

    Pages that some process has mapped stay, and so does everything on macOS, which has no such
    request. Raises OSError.
    """
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # of a file on a read-only mount
                os.fsync(fd)  # dirty pages cannot be dropped
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return resident(paths)


def bring_in(paths: Sequence[Path]) -> Resident:
    """Read whole files into the page cache with large parallel reads; return what is there."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                starts = range(0, size, _PIECE_BYTES)
                lengths = [min(_PIECE_BYTES, size - start) for start in starts]
                reads = pool.map(read_into_page_cache, [fd] * len(starts), starts, lengths)
                for _ in reads:
                    pass
            finally:
                os.close(fd)
    return resident(paths)


def _is_told(path: Path, fd: int) -> bool:
    """Whether mincore tells the truth: on Linux to the owner, or who may write."""
    if sys.platform != "linux":
        return True
    return os.fstat(fd).st_uid == os.geteuid() or os.access(path, os.W_OK)


def _resident_bytes(fd: int, size: int) -> int:
    present = 0
    # Unmapped when the last view of it goes: closing it would fail in an interruption.
    file = memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
    base = address_of(file)
    for start in range(0, size, _ASK_BYTES):
        length = min(_ASK_BYTES, size - start)
        present += length - absent_bytes(base + start, length)
    return present
