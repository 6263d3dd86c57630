"""Experts in slots of our own: a hard budget, direct reads, the page cache left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

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
    """A pool of slots for each block size, filled by workers.

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
        self._ahead: _Fetch | None = None
        layers = sorted(container.layers)
        self._following = dict(pairwise(layers))

    @property
    def nbytes(self) -> int:
        """Return the size of all slots."""
        return sum(pool.nbytes for pool in self._pools.values())

    def addresses(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.uint64] | None:
        """Return where the experts (n,) lie when all have slots, else None."""
        if self._ahead is not None:  # some slots are being filled
            return None
        found = self.pool(layer).addresses([(layer, expert) for expert in experts.tolist()])
        if found is None:
            return None
        self.stats.experts_requested += len(found)
        self.stats.experts_reused += len(found)
        return np.array(found, np.uint64)

    def table(self, layer: int) -> None:
        """Return None: using a slot must be noted, or it would soon be given away."""
        return

    def count_reused(self, num_experts: int) -> None:
        """Do nothing: there is no table."""

    @contextmanager
    def fetch(self, layer: int, experts: NDArray[np.int32]) -> Iterator[Arrivals]:
        """Bring the experts in; each arrives once, those already in a slot first.

        More experts than slots arrive in waves: the slots of a batch are reused as soon as the
        next one is asked for.
        """
        fetch = self._taken_ahead(layer) or _Fetch(self, layer)
        try:
            fetch.start(experts.tolist())
            yield Arrivals(fetch.batches())
        finally:
            fetch.finish()

    def read_ahead(self, layer: int, experts: list[int]) -> None:
        """Start reading experts that the next fetch will probably want, the surest first.

        That fetch must be of this layer; otherwise what was read is dropped.
        """
        self._drop_ahead()
        self._ahead = _Fetch(self, layer)
        self._ahead.start_ahead(experts)

    def expect_most_of_next(self, layer: int) -> None:
        """Start reading the layer after this one, as far as slots go."""
        following = self._following.get(layer)
        if following is not None:
            self.read_ahead(following, list(range(len(self._blocks[following].offsets_bytes))))

    def _taken_ahead(self, layer: int) -> _Fetch | None:
        """Return what was begun for a layer; what was begun for another is given up."""
        ahead = self._ahead
        if ahead is None or ahead.layer != layer:
            self._drop_ahead()
            return None
        self._ahead = None
        return ahead

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.finish()
            self._ahead = None

    def pool(self, layer: int) -> SlotPool:
        """Return the pool that serves a layer."""
        return self._pools[self._blocks[layer].block_bytes]

    def new_pending(self) -> Pending:
        """Return an empty set of reads."""
        return Pending(self._readers, self.stats)

    def resize(self, budget_bytes: int) -> None:
        """Give slots back, or take more, so that all slots together fit the budget."""
        self._drop_ahead()
        for size, num_slots in divide_budget(self._classes, budget_bytes).items():
            self._pools[size].resize(num_slots)

    def close(self) -> None:
        """Stop the readers, give the slots back and close the files."""
        self._drop_ahead()
        self._readers.close()
        for pool in self._pools.values():
            pool.close()
        for file in self._files:
            file.close()
        self._pools, self._files = {}, []

    def start_reading(
        self,
        pool: SlotPool,
        layer: int,
        expert: int,
        pending: Pending,
        failed: set[int] | None = None,
    ) -> None:
        """Let a worker fill the slot that the expert has been given.

        failed: notes experts that could not be read, instead of raising when they are waited for.
        """
        blocks = self._blocks[layer]
        check = self._blocks.needs_check(layer, expert)
        buffer = pool.buffer((layer, expert), blocks.block_bytes)
        read = partial(self._read, layer, expert, buffer, check)
        pending.start(expert, read if failed is None else partial(_noting, failed, expert, read))
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


def _noting(failed: set[int], expert: int, read: Callable[[], None]) -> None:
    try:
        read()
    except Exception:
        failed.add(expert)


class _Fetch:
    """One fetch of a layer: which experts hold a slot, which are being read, which must wait.

    Reads may begin before it is known what is wanted (`start_ahead`).
    """

    def __init__(self, store: OwnedStore, layer: int) -> None:
        self._store = store
        self.layer = layer
        self._pool = store.pool(layer)
        self._pending = store.new_pending()
        self._wanted: frozenset[int] = frozenset()
        self._ready: list[int] = []
        self._in_flight: set[int] = set()
        # Read ahead and not usable: read again if wanted, and then with the error.
        self._failed: set[int] = set()
        self._backlog: list[int] = []

    def start_ahead(self, experts: list[int]) -> None:
        """Start reading those of the experts that have no slot, into half of the slots at most."""
        missing = [expert for expert in experts if not self._pool.has((self.layer, expert))]
        for expert in missing[: self._pool.num_slots // 2]:
            if not self._pool.take((self.layer, expert)):
                break
            self._in_flight.add(expert)
            self._store.start_reading(self._pool, self.layer, expert, self._pending, self._failed)

    def start(self, wanted: list[int]) -> None:
        """Pin what has a slot and start reading the rest, as far as slots go."""
        self._wanted = frozenset(wanted)
        missing: list[int] = []
        for expert in wanted:
            if expert in self._in_flight:
                continue
            found = self._pool.find((self.layer, expert))
            (self._ready if found else missing).append(expert)
        self._store.stats.experts_requested += len(wanted)
        self._store.stats.experts_reused += len(self._ready)
        # Popped from the end, so that reads start in the order asked for.
        self._backlog = missing[::-1]
        self._start_reads()

    def batches(self) -> Iterator[list[Arrival]]:
        """Yield what is there; asking for the next batch frees the slots of the one before."""
        # The other slots are filled while a batch is computed.
        most = max(1, self._pool.num_slots // 2)
        while self._ready or self._in_flight & self._wanted or self._backlog:
            if not self._ready:
                self._take_arrived()
            else:
                batch, self._ready[:most] = self._ready[:most], []
                try:
                    yield [(expert, self._pool.address((self.layer, expert))) for expert in batch]
                finally:
                    self._unpin(batch)
            self._start_reads()

    def finish(self) -> None:
        """Leave no worker writing and no slot pinned, whether or not everything was taken."""
        self._pending.drain()
        self._unpin(self._ready)
        self._ready = []
        for expert in self._in_flight:  # failed, or never waited for
            self._pool.discard((self.layer, expert))
        self._in_flight = set()

    def _take_arrived(self) -> None:
        """Wait until something has arrived, and keep what is wanted of it."""
        for expert in self._pending.wait():
            self._in_flight.discard(expert)
            key = (self.layer, expert)
            if expert in self._failed:
                self._failed.discard(expert)
                self._pool.discard(key)
                self._backlog.extend({expert} & self._wanted)
            elif expert in self._wanted:
                self._ready.append(expert)
            else:
                self._pool.unpin(key)

    def _start_reads(self) -> None:
        while self._backlog and self._pool.take((self.layer, self._backlog[-1])):
            expert = self._backlog.pop()
            self._in_flight.add(expert)
            self._store.start_reading(self._pool, self.layer, expert, self._pending)

    def _unpin(self, experts: list[int]) -> None:
        for expert in experts:
            self._pool.unpin((self.layer, expert))


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
