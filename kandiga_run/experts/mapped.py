"""Experts in the container's own pages: no copy, shared between processes, kept across runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from formats import KexpSet
from kandiga_run.engine import Check
from kandiga_run.engine.stats import RunStats
from kandiga_run.experts.blocks import Blocks
from kandiga_run.experts.known import KnownExperts
from kandiga_run.experts.pages import (
    absent_bytes,
    address_of,
    advise_huge,
    huge_pages_around,
    map_pages,
    mincore_tells_the_truth,
    open_for_random_reads,
    read_into_page_cache,
)
from kandiga_run.experts.reader import Pending, ReaderPool
from kandiga_run.experts.store import Arrival, Arrivals


class MappedStore:
    """Addresses inside the mapped shards; what is not resident is read in by workers first.

    Kernels are never handed pages that were not seen in memory: they would fault them in one by
    one. What was seen is believed until this process has to read a page from disk (`KnownExperts`).
    """

    residency = "mapped"
    nbytes = 0
    held_bytes = 0

    def __init__(
        self,
        container: KexpSet,
        *,
        num_readers: int | None = None,
        check: Check = "first-touch",
        stats: RunStats | None = None,
        huge_pages: bool = False,
    ) -> None:
        """huge_pages: read whole huge pages, neighbours of an expert included.

        That suits memory which all experts will fit into; in less, the neighbours push out what
        is needed.
        """
        self.stats = stats if stats is not None else RunStats()
        self.stats.residency = self.residency
        self._blocks = Blocks(container, check)
        self._maps = [memoryview(shard.mmap) for shard in container.shards]
        self._bases = [address_of(view) for view in self._maps]
        self._addresses = {layer: self._layer_addresses(layer) for layer in container.layers}
        self._known = KnownExperts(self._addresses)
        self._keeps_checking = check == "always"
        self._fds = [open_for_random_reads(shard) for shard in container.shards]
        # Where mincore does not tell, an expert counts as absent until this process read it once.
        self._mincore_tells = all(mincore_tells_the_truth(shard) for shard in container.shards)
        self._read_before: set[tuple[int, int]] = set()
        advised = [huge_pages and self._advise_huge(layer) for layer in container.layers]
        self._reads_huge_pages = all(advised) and huge_pages
        self._readers = ReaderPool(num_readers)

    def addresses(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.uint64] | None:
        """Return where the experts (n,) lie when all are in memory and checked, else None."""
        found = self._known.addresses(layer, experts)
        if found is not None:
            self.stats.experts_requested += found.size
            self.stats.experts_reused += found.size
        return found

    def table(self, layer: int) -> NDArray[np.uint64] | None:
        """Return the addresses of all experts (E,), 0 where nothing is known of one."""
        return self._known.table(layer)

    def count_reused(self, num_experts: int) -> None:
        """Count experts of a table that were used."""
        self.stats.experts_requested += num_experts
        self.stats.experts_reused += num_experts

    @contextmanager
    def fetch(self, layer: int, experts: NDArray[np.int32]) -> Iterator[Arrivals]:
        """Bring the experts in; each arrives once, those already in memory first."""
        pending = Pending(self._readers, self.stats)
        try:
            ready = self._start(layer, experts.tolist(), pending)
            yield Arrivals(self._batches(layer, ready, pending))
        finally:
            pending.drain()

    def _start(self, layer: int, wanted: list[int], pending: Pending) -> list[Arrival]:
        """Let workers bring in what is absent or unchecked; return the rest."""
        addresses = self._addresses[layer]
        known = self._known.of_layer(layer)
        ready = []
        num_read = 0
        for expert in wanted:
            if known[expert]:
                ready.append((expert, addresses[expert]))
                continue
            absent = self._absent_bytes(layer, expert)
            check = self._blocks.needs_check(layer, expert)
            if not absent and not check:
                self._known.add(layer, expert)
                ready.append((expert, addresses[expert]))
                continue
            num_read += absent > 0
            self.stats.bytes_read += absent
            pending.start(expert, partial(self._bring_in, layer, expert, absent > 0, check))
        self.stats.experts_requested += len(wanted)
        self.stats.experts_read += num_read
        self.stats.experts_reused += len(wanted) - num_read
        return ready

    def _batches(
        self, layer: int, ready: list[Arrival], pending: Pending
    ) -> Iterator[list[Arrival]]:
        addresses = self._addresses[layer]
        if ready:
            yield ready
        while pending:
            arrived = pending.wait()
            if not self._keeps_checking:
                for expert in arrived:
                    self._known.add(layer, expert)
            yield [(expert, addresses[expert]) for expert in arrived]

    def expect_most_of_next(self, layer: int) -> None:
        """Do nothing: mapped experts are in memory, or come once."""

    @property
    def wants_guesses(self) -> bool:
        """Return False: see `expect_most_of_next`."""
        return False

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Do nothing."""

    def resize(self, budget_bytes: int) -> None:
        """Do nothing: mapped pages belong to the kernel, which takes them back when it must."""

    def close(self) -> None:
        """Stop the readers and close their descriptors."""
        self._readers.close()
        for fd in self._fds:
            os.close(fd)
        for view in self._maps:
            view.release()
        self._fds, self._maps = [], []

    def _layer_addresses(self, layer: int) -> list[int]:
        blocks = self._blocks[layer]
        base = self._bases[blocks.shard]
        return [base + offset for offset in blocks.offsets_bytes]

    def _advise_huge(self, layer: int) -> bool:
        """Ask for huge pages; the blocks of a layer lie side by side in one shard."""
        blocks, addresses = self._blocks[layer], self._addresses[layer]
        first = min(addresses)
        return advise_huge(first, max(addresses) + blocks.block_bytes - first)

    def _extent(self, layer: int, expert: int) -> tuple[int, int]:
        """Return (address, length) of what is read when the expert is absent."""
        address, blocks = self._addresses[layer][expert], self._blocks[layer]
        if not self._reads_huge_pages:
            return address, blocks.payload_bytes
        start, length = huge_pages_around(address, blocks.payload_bytes)
        base, size = self._bases[blocks.shard], len(self._maps[blocks.shard])
        first, end = max(start, base), min(start + length, base + size)
        return first, end - first

    def _absent_bytes(self, layer: int, expert: int) -> int:
        """Return how much would be read to bring the expert in; 0 when it is in memory."""
        address, length = self._addresses[layer][expert], self._blocks[layer].payload_bytes
        if self._mincore_tells:
            absent = absent_bytes(address, length)
            if absent and self._reads_huge_pages:
                return absent_bytes(*self._extent(layer, expert))
            return absent
        if (layer, expert) in self._read_before:
            return 0
        self._read_before.add((layer, expert))
        return length

    def _bring_in(self, layer: int, expert: int, absent: bool, check: bool) -> None:
        """Worker: make the pages resident and mapped, then compare the checksum."""
        blocks = self._blocks[layer]
        offset, length = blocks.offsets_bytes[expert], blocks.payload_bytes
        address = self._addresses[layer][expert]
        with self._blocks.reading(layer, expert), self._known.own_faults():
            if absent and self._reads_huge_pages:
                map_pages(*self._extent(layer, expert))
                # A disk that fails is a hint not taken: the read below says what is wrong.
                absent = absent_bytes(address, length) > 0
            if absent:
                read_into_page_cache(self._fds[blocks.shard], offset, length)
            map_pages(address, length)
            if check:
                payload = self._maps[blocks.shard][offset : offset + length]
                self._blocks.check(layer, expert, payload)
