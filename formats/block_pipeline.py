"""Blocks filled, hashed and written in worker threads, a few at a time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from formats.crc32 import crc32
from formats.direct import aligned_buffer
from formats.layout import Layout

Views = Mapping[tuple[str, str], memoryview]
Fill = Callable[[Views], None]
Write = Callable[[memoryview], None]
Done = Callable[[int, bytes], None]

# Reading, SHA-256, CRC-32 and writing all release the GIL, and each waits for something else.
NUM_WORKERS = 3
# Blocks in flight: as many as fit this, but two whatever their size, so that one is hashed while
# the other is read.
_BUDGET_BYTES = 24 << 20
# Above this (unquantized experts of the largest models) one at a time, to stay below 500 MB.
_LONE_BLOCK_BYTES = 192 << 20


@dataclass
class _Pending:
    """A block under way, what to do with its digests, and its buffer."""

    digests: Future[tuple[int, bytes]]
    done: Done
    buffer: memoryview


class BlockPipeline:
    """Takes blocks in order and reports each one's digests in that order.

    Buffers are kept for blocks of one layout, whose gaps nobody ever writes: so gaps stay zero.
    An error in a worker is raised by the next call that waits for its block.
    """

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="kexp-block")
        # Apart from the workers, who wait for it.
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="kexp-sha256")
        self._pending: deque[_Pending] = deque()
        self._free: list[memoryview] = []
        self._layout: Layout | None = None

    def put(self, layout: Layout, fill: Fill, write: Write, done: Done) -> None:
        """Fill a block on this thread, and return when it is written; one buffer is enough."""
        self.drain()
        buffer = self._take(layout)
        fill(_views(layout, buffer))
        digest = self._hasher.submit(_sha256, buffer[: layout.payload_bytes])
        try:
            checksum = crc32(buffer[: layout.payload_bytes])
            write(buffer)
        finally:
            sha256 = digest.result()  # the buffer is filled again next
        self._free.append(buffer)
        done(checksum, sha256)

    def submit(self, layout: Layout, fill: Fill, write: Write, done: Done) -> None:
        """Have a block filled, hashed and written by a worker.

        Args:
            fill: called there with the place of each part, each of which it fills to the end.
            write: called there with the whole block.
            done: called on this thread with CRC-32 and SHA-256 of the payload, by a later call.
        """
        if layout != self._layout:
            self.drain()
        depth = 1 if layout.block_bytes > _LONE_BLOCK_BYTES else 2
        depth = min(max(_BUDGET_BYTES // layout.block_bytes, depth), NUM_WORKERS + 1)
        while len(self._pending) >= depth:
            self._reap()
        buffer = self._take(layout)
        task = self._workers.submit(_process, layout, buffer, fill, write)
        self._pending.append(_Pending(task, done, buffer))

    def drain(self) -> None:
        """Wait for every block."""
        while self._pending:
            self._reap()

    def close(self) -> None:
        """Stop the threads; blocks still under way are finished and forgotten."""
        self._workers.shutdown(cancel_futures=True)
        self._hasher.shutdown()
        self._pending.clear()

    def _reap(self) -> None:
        oldest = self._pending.popleft()
        checksum, sha256 = oldest.digests.result()
        self._free.append(oldest.buffer)
        oldest.done(checksum, sha256)

    def _take(self, layout: Layout) -> memoryview:
        if layout != self._layout:
            self._free.clear()
            self._layout = layout
        return self._free.pop() if self._free else aligned_buffer(layout.block_bytes)


def _views(layout: Layout, buffer: memoryview) -> dict[tuple[str, str], memoryview]:
    return {
        part.key: buffer[part.offset_bytes : part.offset_bytes + part.length_bytes]
        for part in layout.parts
    }


def _process(layout: Layout, buffer: memoryview, fill: Fill, write: Write) -> tuple[int, bytes]:
    fill(_views(layout, buffer))
    payload = buffer[: layout.payload_bytes]
    sha256 = _sha256(payload)
    checksum = crc32(payload)
    write(buffer)
    return checksum, sha256


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()
