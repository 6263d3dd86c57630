"""A part of a shard, read past the page cache a piece at a time: constant memory for any length."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from formats.constants import round_up
from formats.direct import DIRECT_ALIGN, DirectFile, aligned_buffer
from formats.shard import Shard

_PIECE_BYTES = 2 << 20

_thread = threading.local()


def iter_pieces(
    shard: Shard, file: DirectFile, offset_bytes: int, length_bytes: int
) -> Iterator[memoryview]:
    """Yield the bytes in order; a piece is valid until the next one of this thread is asked for.

    Args:
        file: of the shard.
    Raises:
        KexpError: E_IO, E_FILE_SIZE.
    """
    buffer = _thread_buffer()
    end_bytes = offset_bytes + length_bytes
    # From the alignment before, since O_DIRECT cannot start where small sections do.
    at = offset_bytes - offset_bytes % DIRECT_ALIGN
    while at < end_bytes:
        wanted = min(end_bytes - at, len(buffer))
        try:
            count = file.read_into(buffer[: round_up(wanted, DIRECT_ALIGN)], at)
        except OSError as error:
            raise shard.unreadable(error, at) from error
        if count < wanted:
            raise shard.ended(at + count)
        yield buffer[max(0, offset_bytes - at) : wanted]
        at += wanted


def _thread_buffer() -> memoryview:
    if not hasattr(_thread, "buffer"):
        _thread.buffer = aligned_buffer(_PIECE_BYTES)
    buffer: memoryview = _thread.buffer
    return buffer
