"""Experts in slots of our own: a hard budget, direct reads, the page cache left alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from formats import KexpSet
from formats.direct import DirectFile
from kandiga_run.engine import Check
from kandiga_run.engine.stats import RunStats
from kandiga_run.errors import RunError
from kandiga_run.experts.blocks import Blocks
from kandiga_run.experts.guesses import MOST_GUESSED, Guesses
from kandiga_run.experts.slot_fetch import ReadAhead, SlotFetch
from kandiga_run.experts.slot_reads import SlotReads
from kandiga_run.experts.slots import SlotPool
from kandiga_run.experts.store import Arrivals

# One slot is computed while the other is filled; a single one would make them take turns.
_MIN_SLOTS = 2


class OwnedStore:
    """A pool of slots for each block size, filled by direct reads.

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
        self._reads = SlotReads(self._blocks, self._files, self.stats, num_readers)
        self._pools = {size: SlotPool(size, num_slots) for size, num_slots in shares.items()}
        self._ahead: ReadAhead | None = None
        self._guesses = Guesses(self.stats)
        # (layer, experts, how many of them) to be read once the disk has nothing else to do
        self._next: tuple[int, Sequence[int], int | None] | None = None
        layers = sorted(container.layers)
        self._following = dict(pairwise(layers))

    @property
    def nbytes(self) -> int:
        """Return the size of all slots."""
        return sum(pool.nbytes for pool in self._pools.values())

    @property
    def held_bytes(self) -> int:
        """Return the memory of the slots that were used, or are about to be."""
        return sum(pool.held_bytes for pool in self._pools.values())

    def addresses(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.uint64] | None:
        """Return where the experts (n,) lie when all have slots, else None."""
        if self._ahead is not None:  # some slots are being filled
            return None
        keys = [(layer, expert) for expert in experts.tolist()]
        if len(self._reads) and any(key in self._reads for key in keys):
            return None
        found = self._pool(layer).addresses(keys)
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
        fetch = SlotFetch(layer, self._pool(layer), self._reads, self.stats)
        ahead, self._ahead = self._ahead, None
        self._next = None
        try:
            fetch.start(experts.tolist(), ahead)
            yield Arrivals(fetch.batches(self._read_next))
        finally:
            fetch.finish()
        self._read_next()

    @property
    def wants_guesses(self) -> bool:
        """Whether guesses come true often enough."""
        return self._guesses.pay()

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Read some of the experts once nothing is left to read of this fetch."""
        self._next = layer, experts, MOST_GUESSED

    def _read_next(self) -> None:
        if self._next is None:
            return
        layer, experts, most = self._next
        if self._ahead is None:
            self.read_ahead(layer, experts, most)
        elif most is None:
            self._ahead.start(experts)

    def read_ahead(self, layer: int, experts: Sequence[int], most: int | None = None) -> None:
        """Start reading experts that the next fetch will probably want, the surest first.

        most: how many are read. That fetch should be of this layer; otherwise the slots are free
        again.
        """
        self._drop_ahead()
        self._ahead = ReadAhead(layer, self._pool(layer), self._reads, self.stats)
        self._ahead.start(experts, most)

    def expect_most_of_next(self, layer: int) -> None:
        """Read the layer after this one, as slots become free."""
        following = self._following.get(layer)
        if following is not None:
            self._next = following, range(len(self._blocks[following].offsets_bytes)), None

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.release(())
            self._ahead = None

    def _pool(self, layer: int) -> SlotPool:
        """Return the pool that serves a layer."""
        return self._pools[self._blocks[layer].block_bytes]

    def resize(self, budget_bytes: int) -> None:
        """Give slots back, or take more, so that all slots together fit the budget."""
        shares = divide_budget(self._classes, budget_bytes)
        self._next = None
        self._drop_ahead()
        self._reads.drain()
        for size, num_slots in shares.items():
            self._pools[size].resize(num_slots)

    def close(self) -> None:
        """Wait for the disk, give the slots back and close the files."""
        self._ahead = None
        self._reads.close()
        for pool in self._pools.values():
            pool.close()
        for file in self._files:
            file.close()
        self._pools, self._files = {}, []


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
