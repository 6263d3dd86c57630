"""Experts in the container's own pages: no copy, shared between processes, kept across runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from formats import KexpSet
from kandiga_run.engine import Check
from kandiga_run.experts.blocks import Blocks
from kandiga_run.experts.pages import (
    absent_bytes,
    address_of,
    map_pages,
    mincore_tells_the_truth,
    open_for_random_reads,
    read_into_page_cache,
)
from kandiga_run.experts.reader import Pending, ReaderPool
from kandiga_run.experts.store import Arrival, Arrivals
from kandiga_run.stats import RunStats


class MappedStore:
    """Addresses inside the mapped shards; what is not resident is read in by workers first.

    Kernels are never handed pages that mincore calls absent: they would fault them in one by one.
    """

    residency = "mapped"
    nbytes = 0

    def __init__(
        self,
        container: KexpSet,
        *,
        num_readers: int | None = None,
        check: Check = "first-touch",
        stats: RunStats | None = None,
    ) -> None:
        self.stats = stats if stats is not None else RunStats()
        self.stats.residency = self.residency
        self._blocks = Blocks(container, check)
        self._maps = [memoryview(shard.mmap) for shard in container.shards]
        self._addresses = {layer: self._layer_addresses(layer) for layer in container.layers}
        self._fds = [open_for_random_reads(shard) for shard in container.shards]
        # Where mincore does not tell, an expert counts as absent until this process read it once.
        self._mincore_tells = all(mincore_tells_the_truth(shard) for shard in container.shards)
        self._read_before: set[tuple[int, int]] = set()
        self._readers = ReaderPool(num_readers)

    @contextmanager
    def fetch(self, layer: int, experts: NDArray[np.int32]) -> Iterator[Arrivals]:
        """Bring the experts in; each arrives once, those already in memory first."""
        pending = Pending(self._readers, self.stats)
        try:
            ready = self._start(layer, experts.tolist(), pending)
            yield Arrivals(_batches(self._addresses[layer], ready, pending))
        finally:
            pending.drain()

    def _start(self, layer: int, wanted: list[int], pending: Pending) -> list[Arrival]:
        """Let workers bring in what is absent or unchecked; return the rest."""
        addresses = self._addresses[layer]
        length = self._blocks[layer].payload_bytes
        ready = []
        num_read = 0
        for expert in wanted:
            absent = self._absent_bytes(layer, expert, addresses[expert], length)
            check = self._blocks.needs_check(layer, expert)
            if not absent and not check:
                ready.append((expert, addresses[expert]))
                continue
            num_read += absent > 0
            self.stats.bytes_read += absent
            pending.start(expert, partial(self._bring_in, layer, expert, absent > 0, check))
        self.stats.experts_requested += len(wanted)
        self.stats.experts_read += num_read
        self.stats.experts_reused += len(wanted) - num_read
        return ready

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
        base = address_of(self._maps[blocks.shard])
        return [base + offset for offset in blocks.offsets_bytes]

    def _absent_bytes(self, layer: int, expert: int, address: int, length: int) -> int:
        if self._mincore_tells:
            return absent_bytes(address, length)
        if (layer, expert) in self._read_before:
            return 0
        self._read_before.add((layer, expert))
        return length

    def _bring_in(self, layer: int, expert: int, absent: bool, check: bool) -> None:
        """Worker: make the pages resident and mapped, then compare the checksum."""
        blocks = self._blocks[layer]
        offset, length = blocks.offsets_bytes[expert], blocks.payload_bytes
        with self._blocks.reading(layer, expert):
            if absent:
                read_into_page_cache(self._fds[blocks.shard], offset, length)
            map_pages(self._addresses[layer][expert], length)
            if check:
                payload = self._maps[blocks.shard][offset : offset + length]
                self._blocks.check(layer, expert, payload)


def _batches(
    addresses: list[int], ready: list[Arrival], pending: Pending
) -> Iterator[list[Arrival]]:
    if ready:
        yield ready
    while pending:
        yield [(expert, addresses[expert]) for expert in pending.wait()]
