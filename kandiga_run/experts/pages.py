"""Mapped pages of a file: which are in memory, and bringing in those that are not.

Cold pages are read with `pread` into a throwaway buffer, in requests of a whole expert: that puts
them in the page cache at the disk's speed, while touching them through the mapping costs a fault
and a small read every few pages (measured on x86-64 Linux, random 1.77 MB blocks: 1.4-1.9 GB/s
against 0.06-0.2). `MADV_WILLNEED` and `readahead` were no faster and do not say when they are done;
`MADV_POPULATE_READ` on cold pages reads more than asked. On pages that are in memory, populating
just fills the page table, which saves the kernels their minor faults.
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
    """Fill the page table for a range that is in memory; a hint, never an error."""
    if sys.platform == "linux":
        start = address - address % _PAGE
        _libc.madvise(start, address + length - start, _MADV_POPULATE_READ)


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
