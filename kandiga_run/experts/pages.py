"""Mapped pages of a file: which are in memory, and bringing in those that are not.

Cold pages are read with `pread` into a throwaway buffer, in requests of a whole expert: that puts
them in the page cache at the disk's speed, while touching them through the mapping costs a fault
and a small read every few pages (measured on x86-64 Linux, random 1.77 MB blocks: 1.4-1.9 GB/s
against 0.06-0.2). `MADV_WILLNEED` and `readahead` were no faster and do not say when they are done;
`MADV_POPULATE_READ` on cold pages reads more than asked. On pages that are in memory, populating
just fills the page table, which saves the kernels their minor faults.

Where a range is marked by `advise_huge`, populating reads cold pages too, as folios of 2 MB. They
stay in the page cache for later runs, and the experts' access pattern reads them at 29.8 GB/s where
small pages give 26.0 and anonymous huge pages 31.2 (two threads, x86-64, ext4 on Linux 6.18).
Bringing them in took no longer: 2.0 GB/s against 1.7 by `pread`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading

import numpy as np

from formats import Shard
from formats.direct import reopen

_PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
_READ_BYTES = 2 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14; older kernels answer EINVAL, which changes nothing here

# Only the lowest bit of an answer says "resident"; macOS sets others.
_LOWEST_BIT = bytes(value & 1 for value in range(256))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_thread = threading.local()


def address_of(buffer: memoryview) -> int:
    """Return where a buffer begins in memory."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def absent_bytes(address: int, length: int) -> int:
    """Return how much of a mapped range is not in memory; all of it when the system won't say."""
    into_page = address % _PAGE
    num_pages = -(-(into_page + length) // _PAGE)
    answers = _mincore_answers(num_pages)
    if _libc.mincore(address - into_page, into_page + length, answers) != 0:
        return length
    resident = answers.raw[:num_pages].translate(_LOWEST_BIT).count(1)
    return min(length, (num_pages - resident) * _PAGE)


def _mincore_answers(num_pages: int) -> ctypes.Array[ctypes.c_char]:
    """Return this thread's buffer of at least `num_pages` answers."""
    if len(getattr(_thread, "answers", ())) < num_pages:
        _thread.answers = ctypes.create_string_buffer(num_pages)
    answers: ctypes.Array[ctypes.c_char] = _thread.answers
    return answers


def mincore_tells_the_truth(shard: Shard) -> bool:
    """Whether mincore reports the page cache of this file to us.

    Linux answers "all resident" for a file that the caller neither owns nor may write.
    """
    if sys.platform != "linux":
        return True
    return os.fstat(shard.fd).st_uid == os.geteuid() or os.access(shard.path, os.W_OK)


def read_into_page_cache(fd: int, offset_bytes: int, length: int) -> None:
    """Read a range of a file for its side effect. Releases the interpreter's lock.

    Raises OSError, and EOFError when the file ends before the range does.
    """
    buffer = _throwaway_buffer()
    end = offset_bytes + length
    while offset_bytes < end:
        count = os.preadv(fd, [buffer[: end - offset_bytes]], offset_bytes)
        if count == 0:
            raise EOFError
        offset_bytes += count


def map_pages(address: int, length: int) -> None:
    """Fill the page table for a range; a hint, never an error.

    Pages that are not in memory are read: as huge ones where `advise_huge` said so, otherwise with
    the mapping's readahead.
    """
    if sys.platform == "linux":
        start = address - address % _PAGE
        _libc.madvise(start, address + length - start, _MADV_POPULATE_READ)


def advise_huge(address: int, length: int) -> bool:
    """Let faults in a mapped range of a file read huge pages, and nothing beside them.

    Returns whether the system takes the advice. Filesystems without large folios (ext4 before
    Linux 6.16, overlay of one) read small pages all the same.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    read_without_readahead(address, length)
    start = address - address % _PAGE
    return bool(_libc.madvise(start, address + length - start, mmap.MADV_HUGEPAGE) == 0)


def huge_pages_around(address: int, length: int) -> tuple[int, int]:
    """Return (address, length) of the huge pages that a range lies on."""
    start = address - address % HUGE_PAGE
    num_pages = -((start - address - length) // HUGE_PAGE)
    return start, num_pages * HUGE_PAGE


def read_without_readahead(address: int, length: int) -> None:
    """Let later faults in a mapped range read single pages; a hint, never an error."""
    start = address - address % _PAGE
    _libc.madvise(start, address + length - start, mmap.MADV_RANDOM)


def open_for_random_reads(shard: Shard) -> int:
    """Return a descriptor whose reads bring in what was asked for and no readahead."""
    try:
        fd = reopen(shard.path, shard.fd)
    except OSError:  # its name is gone; a duplicate shares the advice below with the shard's own
        fd = os.dup(shard.fd)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return fd


def _throwaway_buffer() -> memoryview:
    """Return this thread's buffer; reused, so that its pages are faulted in once."""
    if not hasattr(_thread, "buffer"):
        _thread.buffer = memoryview(bytearray(_READ_BYTES))
    buffer: memoryview = _thread.buffer
    return buffer
