"""Reading the dense weights in before the first token."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial

from formats import DenseTensor, Shard
from kandiga_run.background import GaveUp, never, unless
from kandiga_run.container import Model
from kandiga_run.container.dense_watch import DenseWatch
from kandiga_run.engine.stats import RunStats
from kandiga_run.experts.pages import (
    absent_bytes,
    address_of,
    advise_huge,
    map_pages,
    open_for_random_reads,
    read_into_page_cache,
    read_without_readahead,
)
from kandiga_run.experts.reader import Pending, ReaderPool
from kandiga_run.native.dense_pieces import pieces

_PIECE_BYTES = 8 << 20


def bring_in_dense(model: Model, names: Iterable[str], gave_up: GaveUp = never) -> None:
    """Make the pages of these dense tensors resident and mapped, with large parallel reads.

    Left to page faults, the first token would read them at a tenth of the disk's speed. Each piece
    is shown to the model's dense watch.
    """
    by_shard: dict[int, list[DenseTensor]] = {}
    for name in names:
        tensor = model.dense[name]
        by_shard.setdefault(tensor.shard, []).append(tensor)
    for number, tensors in by_shard.items():
        shard = model.container.shards[number]
        _bring_in(shard, list(pieces(tensors, _PIECE_BYTES)), model.dense_watch, gave_up)


def expect_huge_pages(model: Model) -> None:
    """Let what is brought in of the dense weights become huge pages, where it is not in memory."""
    for number, shard in enumerate(model.container.shards):
        tensors = [tensor for tensor in model.dense.values() if tensor.shard == number]
        if tensors:
            first = min(tensor.offset_bytes for tensor in tensors)
            end = max(tensor.offset_bytes + tensor.length_bytes for tensor in tensors)
            advise_huge(address_of(memoryview(shard.mmap)) + first, end - first)


def expect_single_rows(model: Model, names: Iterable[str]) -> None:
    """Let page faults in these tensors read the page they need, and no readahead around it."""
    for name in names:
        tensor = model.dense[name]
        base = address_of(memoryview(model.container.shards[tensor.shard].mmap))
        read_without_readahead(base + tensor.offset_bytes, tensor.length_bytes)


def _bring_in(
    shard: Shard, wanted: list[tuple[int, int]], watch: DenseWatch, gave_up: GaveUp
) -> None:
    whole = memoryview(shard.mmap)
    fd = open_for_random_reads(shard)
    readers = ReaderPool()
    pending = Pending(readers, RunStats())
    try:
        for offset, length in wanted:
            bring_in = partial(_bring_in_piece, shard, fd, whole, offset, length, watch)
            pending.start(0, unless(gave_up, bring_in))
        while pending:
            pending.wait()
    finally:
        pending.drain()
        readers.close()
        whole.release()
        os.close(fd)


def _bring_in_piece(
    shard: Shard, fd: int, whole: memoryview, offset: int, length: int, watch: DenseWatch
) -> None:
    with whole[offset : offset + length] as piece:
        address = address_of(piece)
        if absent_bytes(address, length):
            map_pages(address, length)  # reads huge pages where `expect_huge_pages` asked for them
        if absent_bytes(address, length):
            try:
                read_into_page_cache(fd, offset, length)
            except EOFError:
                raise shard.ended(offset) from None
            except OSError as error:
                raise shard.unreadable(error, offset) from error
        map_pages(address, length)
        watch.saw(offset, piece)
