"""Experts in slots of our own: a hard budget, direct reads, the page cache left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from formats import KexpSet
from formats.direct import DirectFile
from kandiga_run.engine import Check
from kandiga_run.errors import RunError
from kandiga_run.experts.blocks import Blocks
from kandiga_run.experts.reader import Pending, ReaderPool
from kandiga_run.experts.slots import SlotPool
from kandiga_run.experts.store import Arrival, Arrivals
from kandiga_run.stats import RunStats

# One slot is computed while the other is filled; a single one would make them take turns.
_MIN_SLOTS = 2


class OwnedStore:
    """A pool of slots for each block size, filled by workers and reused least recently used first.

    Layers quantized differently have blocks of different sizes; a pool each wastes no memory. The
    budget is divided in proportion to the bytes of experts each pool serves.
    """

    residency = "owned"

    def __init__(
        self,
        container: KexpSet,
        budget_bytes: int,
        *,
        num_readers: int | None = None,
        check: Check = "first-touch",
        stats: RunStats | None = None,
    ) -> None:
        self._classes = _experts_by_size(container)
        shares = divide_budget(self._classes, budget_bytes)
        self.stats = stats if stats is not None else RunStats()
        self.stats.residency = self.residency
        self._blocks = Blocks(container, check)
        self._files = [DirectFile(shard.path, shard.fd) for shard in container.shards]
        self._pools = {size: SlotPool(size, num_slots) for size, num_slots in shares.items()}
        self._readers = ReaderPool(num_readers)

    @property
    def nbytes(self) -> int:
        """Return the size of all slots."""
        return sum(pool.nbytes for pool in self._pools.values())

    def addresses(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.uint64] | None:
        """Return where the experts (n,) lie when all have slots, else None."""
        found = self.pool(layer).addresses([(layer, expert) for expert in experts.tolist()])
        if found is None:
            return None
        self.stats.experts_requested += len(found)
        self.stats.experts_reused += len(found)
        return np.array(found, np.uint64)

    @contextmanager
    def fetch(self, layer: int, experts: NDArray[np.int32]) -> Iterator[Arrivals]:
        """Bring the experts in; each arrives once, those already in a slot first.

        More experts than slots arrive in waves: the slots of a batch are reused as soon as the
        next one is asked for.
        """
        fetch = _Fetch(self, layer)
        try:
            fetch.start(experts.tolist())
            yield Arrivals(fetch.batches())
        finally:
            fetch.finish()

    def pool(self, layer: int) -> SlotPool:
        """Return the pool that serves a layer."""
        return self._pools[self._blocks[layer].block_bytes]

    def new_pending(self) -> Pending:
        """Return an empty set of reads."""
        return Pending(self._readers, self.stats)

    def resize(self, budget_bytes: int) -> None:
        """Give slots back, or take more, so that all slots together fit the budget."""
        for size, num_slots in divide_budget(self._classes, budget_bytes).items():
            self._pools[size].resize(num_slots)

    def close(self) -> None:
        """Stop the readers, give the slots back and close the files."""
        self._readers.close()
        for pool in self._pools.values():
            pool.close()
        for file in self._files:
            file.close()
        self._pools, self._files = {}, []

    def start_reading(self, pool: SlotPool, layer: int, expert: int, pending: Pending) -> None:
        """Let a worker fill the slot that the expert has been given."""
        blocks = self._blocks[layer]
        check = self._blocks.needs_check(layer, expert)
        buffer = pool.buffer((layer, expert), blocks.block_bytes)
        pending.start(expert, partial(self._read, layer, expert, buffer, check))
        self.stats.experts_read += 1
        self.stats.bytes_read += blocks.block_bytes

    def _read(self, layer: int, expert: int, buffer: memoryview, check: bool) -> None:
        """Worker: fill the slot, then compare the checksum."""
        blocks = self._blocks[layer]
        with self._blocks.reading(layer, expert):
            count = self._files[blocks.shard].read_into(buffer, blocks.offsets_bytes[expert])
            if count < len(buffer):
                raise EOFError
            if check:
                self._blocks.check(layer, expert, buffer[: blocks.payload_bytes])


class _Fetch:
    """One fetch of a layer: which experts hold a slot, which are being read, which must wait."""

    def __init__(self, store: OwnedStore, layer: int) -> None:
        self._store = store
        self._layer = layer
        self._pool = store.pool(layer)
        self._pending = store.new_pending()
        self._ready: list[int] = []
        self._in_flight: set[int] = set()
        self._backlog: list[int] = []

    def start(self, wanted: list[int]) -> None:
        """Pin what has a slot and start reading the rest, as far as slots go."""
        missing: list[int] = []
        for expert in wanted:
            found = self._pool.find((self._layer, expert))
            (self._ready if found else missing).append(expert)
        self._store.stats.experts_requested += len(wanted)
        self._store.stats.experts_reused += len(self._ready)
        # Popped from the end, so that reads start in the order asked for.
        self._backlog = missing[::-1]
        self._start_reads()

    def batches(self) -> Iterator[list[Arrival]]:
        """Yield what is there; asking for the next batch frees the slots of the one before."""
        while self._ready or self._pending:
            if not self._ready:
                self._ready = self._pending.wait()
                self._in_flight.difference_update(self._ready)
            yield [(expert, self._pool.address((self._layer, expert))) for expert in self._ready]
            self._release_ready()
            self._start_reads()

    def finish(self) -> None:
        """Leave no worker writing and no slot pinned, whether or not everything was taken."""
        self._pending.drain()
        self._release_ready()
        for expert in self._in_flight:  # failed, or never waited for
            self._pool.discard((self._layer, expert))

    def _start_reads(self) -> None:
        while self._backlog and self._pool.take((self._layer, self._backlog[-1])):
            expert = self._backlog.pop()
            self._in_flight.add(expert)
            self._store.start_reading(self._pool, self._layer, expert, self._pending)

    def _release_ready(self) -> None:
        for expert in self._ready:
            self._pool.unpin((self._layer, expert))
        self._ready = []


def smallest_budget(container: KexpSet) -> int:
    """Return the smallest number of bytes of slots that can work."""
    classes = _experts_by_size(container)
    return sum(size * min(_MIN_SLOTS, count) for size, count in classes.items())


def divide_budget(classes: dict[int, int], budget_bytes: int) -> dict[int, int]:
    """Return how many slots each block size gets, {block_bytes: slots}, given their experts.

    Every size gets its minimum, the rest is divided in proportion to the bytes of experts.
    RunError when the budget does not reach the minimum.
    """
    least = {size: min(_MIN_SLOTS, count) for size, count in classes.items()}
    smallest = sum(size * slots for size, slots in least.items())
    if budget_bytes < smallest:
        raise RunError(
            f"{budget_bytes} bytes for experts are too few: the smallest that can work is "
            f"{smallest} bytes"
        )
    total = sum(size * count for size, count in classes.items())
    rest = budget_bytes - smallest
    return {
        size: min(count, least[size] + rest * count // total) for size, count in classes.items()
    }


def _experts_by_size(container: KexpSet) -> dict[int, int]:
    """Return how many experts have blocks of each size, {block_bytes: experts}."""
    counts: dict[int, int] = {}
    for layer in container.layers:
        size = container.layout(layer).block_bytes
        counts[size] = counts.get(size, 0) + container.num_experts(layer)
    return counts
