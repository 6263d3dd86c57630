"""Blocks on their way from disk into slots, and who waits for them.

Reads go to one of two `BlockReader`s. A few at a time go to the kernel's queue: a burst of them
costs one system call, no thread has to wake up for each, and none of them takes the interpreter's
lock from whoever computes. A whole layer goes to threads that take one block after the other: the
disk works on all that is in the kernel's queue at once, so 22 wanted blocks in front of 98 of the
next layer were there together with the last of these, 40 ms late; and while a batch of 60 experts
is computed nobody is there to fill a short queue again. (A prompt of 2048 tokens, 12 layers of a
35B model, 231 slots, x86-64, 2 threads: 5.22 s with all of it in the queue, 4.71 s so.)

The checksum of a block is compared as it arrives, by the thread that waits anyway, while the disk
is busy with the next ones: 0.05 ms for a block that takes it 0.6 ms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Protocol

from cython_kernels import BlockReader
from formats.direct import DirectFile
from kandiga_run.engine.stats import RunStats
from kandiga_run.experts.blocks import Blocks
from kandiga_run.experts.slots import Key

#: Reads under way at once, and one more for each block that is computed meanwhile. A disk is busy
#: with two; what is more hides the time until somebody asks for the next ones, and takes slots
#: that might stay in the caches.
MOST_UNDER_WAY = 12
# Where the kernel has no queue of its own, or must not use it. One O_DIRECT reader already
# saturates a virtual NVMe disk; others gain up to four.
DEFAULT_NUM_READERS = 4
_READER_VARIABLE = "KANDIGA_READER"


class Waiting(Protocol):
    """Somebody who has asked for blocks."""

    def arrived(self, key: Key, error: BaseException | None) -> None:
        """Take note that a block is there and was checked, or why not."""


class _Read:
    """One block. `waiting` may change, or be nobody, until it has arrived."""

    __slots__ = ("buffer", "check", "key", "offset_bytes", "shard", "waiting")

    def __init__(
        self,
        key: Key,
        shard: int,
        offset_bytes: int,
        buffer: memoryview,
        check: bool,
        waiting: Waiting,
    ) -> None:
        self.key = key
        self.shard = shard
        self.offset_bytes = offset_bytes
        self.buffer = buffer
        self.check = check
        self.waiting = waiting


class SlotReads:
    """Everything that is being read. Used by one thread at a time."""

    def __init__(
        self,
        blocks: Blocks,
        files: Sequence[DirectFile],
        stats: RunStats,
        num_readers: int | None = None,
    ) -> None:
        num_readers = DEFAULT_NUM_READERS if num_readers is None else num_readers
        if num_readers < 1:
            raise ValueError(f"num_readers is {num_readers}, wanted at least 1")
        self._blocks = blocks
        self._files = files
        self._stats = stats
        use_queue = os.environ.get(_READER_VARIABLE) != "threads"
        self._bursts = BlockReader(num_readers, use_queue)
        self._stream = BlockReader(num_readers, use_queue=False) if use_queue else self._bursts
        self._reads: dict[Key, _Read] = {}
        self._keys: dict[int, Key] = {}
        self._last_tag = 0

    def room_beside(self, num_computed: int) -> int:
        """Return how many reads may be started while so many blocks are computed."""
        most = min(MOST_UNDER_WAY + num_computed, self._stream.capacity)
        return max(0, most - len(self._reads))

    @property
    def room_ahead(self) -> int:
        """Return how many reads may be started that nobody waits for yet."""
        return self._stream.capacity - len(self._reads)

    def __len__(self) -> int:
        return len(self._reads)

    def __contains__(self, key: Key) -> bool:
        return key in self._reads

    def start(
        self, wanted: Sequence[tuple[Key, int, memoryview]], waiting: Waiting, *, in_order: bool
    ) -> None:
        """Read blocks, each (key, address, buffer of its size).

        in_order: after all others of that kind, not all at once.
        """
        descriptions = []
        for key, address, buffer in wanted:
            layer, expert = key
            blocks = self._blocks[layer]
            offset = blocks.offsets_bytes[expert]
            check = self._blocks.needs_check(layer, expert)
            self._last_tag += 1
            self._reads[key] = _Read(key, blocks.shard, offset, buffer, check, waiting)
            self._keys[self._last_tag] = key
            fd = self._files[blocks.shard].fd
            descriptions.append((fd, offset, address, blocks.block_bytes, self._last_tag))
            self._stats.bytes_read += blocks.block_bytes
        self._stats.experts_read += len(descriptions)
        # What the system refuses to begin is read when somebody waits for it (`_read_lost`).
        (self._stream if in_order else self._bursts).start(descriptions)

    def hand_over(self, key: Key, waiting: Waiting) -> None:
        """Let somebody else wait for a block."""
        self._reads[key].waiting = waiting

    def wait(self) -> None:
        """Tell those waiting what has arrived, at least one block if any is being read."""
        reader = self._bursts if self._bursts.under_way else self._stream
        if not reader.under_way:
            self._read_lost()
            return
        started = time.perf_counter()
        done = reader.wait()
        self._stats.read_wait_seconds += time.perf_counter() - started
        self._take(done)

    def poll(self) -> None:
        """Tell those waiting what has arrived, if anything has."""
        for reader in (self._bursts, self._stream):
            if reader.under_way:
                self._take(reader.wait(0))

    def drain(self) -> None:
        """Wait for everything that is being read."""
        while self._reads:
            self.wait()

    def close(self) -> None:
        """Wait until nobody writes into slots any more."""
        self._bursts.close()
        self._stream.close()
        self._reads.clear()

    def _take(self, done: list[tuple[int, int]]) -> None:
        for tag, result in done:
            self._finish(self._reads[self._keys[tag]], result)
            del self._keys[tag]

    def _read_lost(self) -> None:
        """Read what was never begun, and what a Ctrl-C lost between its arrival and `_take`."""
        self._keys.clear()
        for read in list(self._reads.values()):
            self._finish(read, 0)

    def _finish(self, read: _Read, result: int) -> None:
        error: BaseException | None = None
        if result != len(read.buffer) or read.check or not self._files[read.shard].direct:
            try:
                self._complete(read, result)
            except Exception as cause:  # raised where the block is waited for
                error = cause
        read.waiting.arrived(read.key, error)
        # Last: after a Ctrl-C before it the block is read once more.
        del self._reads[read.key]

    def _complete(self, read: _Read, result: int) -> None:
        """Do what the reader could not: finish a read that ended early, check what was read."""
        layer, expert = read.key
        file = self._files[read.shard]
        with self._blocks.reading(layer, expert):
            if result == len(read.buffer):
                file.drop(read.offset_bytes, result)
            elif file.read_into(read.buffer, read.offset_bytes) < len(read.buffer):
                raise EOFError
            if read.check:
                payload_bytes = self._blocks[layer].payload_bytes
                self._blocks.check(layer, expert, read.buffer[:payload_bytes])
