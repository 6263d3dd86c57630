"""Dense weights in anonymous huge pages instead of the container's own.

Two threads read the weights of a token at 31.2 GB/s from them, at 29.8 from huge pages of a file,
at 26.0 from small ones (x86-64, Linux 6.18). They cannot be reclaimed either: under a memory limit
the page cache of dense weights is what the kernel drops first, and every token needs all of them.
The price is that processes do not share them, and 0.2 to 1.2 s a GB at the start.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats import DenseTensor, Shard
from formats.direct import DIRECT_ALIGN, DirectFile
from kandiga_run.background import GaveUp, never, unless
from kandiga_run.container import Model
from kandiga_run.engine.stats import RunStats
from kandiga_run.experts.huge_memory import HugeMemory
from kandiga_run.experts.pages import (
    HUGE_PAGE,
    absent_bytes,
    address_of,
    mincore_tells_the_truth,
)
from kandiga_run.experts.reader import Pending, ReaderPool
from kandiga_run.native.dense_pieces import pieces


@dataclass(frozen=True)
class _Area:
    """Memory for the dense tensors of a shard, in the places they have in the file."""

    shard: Shard
    memory: HugeMemory
    #: of the file, where the memory begins; a multiple of huge pages
    first_bytes: int


class DenseCopy:
    """Address space for all dense tensors; those that `fill` is told of get memory."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._areas = {
            number: _area(model.container.shards[number], tensors)
            for number, tensors in self._by_shard(model.dense).items()
        }

    def array(self, name: str) -> NDArray[Any]:
        """Return a dense tensor as `Model.dense_array` does; its values come with `fill`."""
        tensor, stored = self._model.dense[name], self._model.dense_array(name)
        area = self._areas[tensor.shard]
        start = tensor.offset_bytes - area.first_bytes
        data = area.memory.view[start : start + tensor.length_bytes].toreadonly()
        array: NDArray[Any] = np.frombuffer(data, stored.dtype).reshape(stored.shape)
        return array

    def nbytes(self, names: Iterable[str]) -> int:
        """Return the memory that these tensors take, in whole huge pages."""
        touched: set[tuple[int, int]] = set()
        for name in names:
            tensor = self._model.dense[name]
            end = tensor.offset_bytes + tensor.length_bytes
            touched.update(
                (tensor.shard, page)
                for page in range(tensor.offset_bytes // HUGE_PAGE, -(-end // HUGE_PAGE))
            )
        return len(touched) * HUGE_PAGE

    def fill(self, names: Iterable[str], gave_up: GaveUp = never) -> None:
        """Copy these tensors in: from the page cache if they are there, else past it.

        Each piece is shown to the model's dense watch while it is in the core's cache. Raises
        KexpError when the file cannot be read.
        """
        readers = ReaderPool()
        try:
            for number, tensors in self._by_shard(names).items():
                self._fill_area(self._areas[number], tensors, readers, gave_up)
        finally:
            readers.close()

    def fill_alone(self, names: Iterable[str], gave_up: GaveUp) -> None:
        """Copy tensors that the dense watch has seen, in this thread and no other.

        Raises KexpError as `fill`.
        """
        for number, tensors in self._by_shard(names).items():
            area = self._areas[number]
            file = DirectFile(area.shard.path, area.shard.fd)
            try:
                for offset, length in pieces(tensors, HUGE_PAGE):
                    if gave_up():
                        return
                    self._fill_piece(area, file, offset, length, is_shown=False)
            finally:
                file.close()

    def _by_shard(self, names: Iterable[str]) -> dict[int, list[DenseTensor]]:
        by_shard: dict[int, list[DenseTensor]] = {}
        for name in names:
            tensor = self._model.dense[name]
            by_shard.setdefault(tensor.shard, []).append(tensor)
        return by_shard

    def _fill_area(
        self, area: _Area, tensors: list[DenseTensor], readers: ReaderPool, gave_up: GaveUp
    ) -> None:
        file = DirectFile(area.shard.path, area.shard.fd)
        pending = Pending(readers, RunStats())
        try:
            for offset, length in pieces(tensors, HUGE_PAGE):
                fill = partial(self._fill_piece, area, file, offset, length)
                pending.start(0, unless(gave_up, fill))
            while pending:
                pending.wait()
        finally:
            pending.drain()
            file.close()

    def _fill_piece(
        self, area: _Area, file: DirectFile, offset: int, length: int, *, is_shown: bool = True
    ) -> None:
        """Worker: the piece and the rest of its first and last page, as direct reads want it."""
        first = offset // DIRECT_ALIGN * DIRECT_ALIGN
        end = -(-(offset + length) // DIRECT_ALIGN) * DIRECT_ALIGN
        with area.memory.view[first - area.first_bytes : end - area.first_bytes] as buffer:
            try:
                count = _read(area.shard, file, buffer, first)
            except OSError as error:
                raise area.shard.unreadable(error, offset) from error
            if count < offset + length - first:
                raise area.shard.ended(offset)
            if is_shown:
                start = offset - first
                self._model.dense_watch.saw(offset, buffer[start : start + length])


def _area(shard: Shard, tensors: list[DenseTensor]) -> _Area:
    first = min(tensor.offset_bytes for tensor in tensors) // HUGE_PAGE * HUGE_PAGE
    end = max(tensor.offset_bytes + tensor.length_bytes for tensor in tensors)
    # Room for the whole pages that direct reads bring.
    return _Area(shard, HugeMemory(end + DIRECT_ALIGN - first), first)


def _read(shard: Shard, file: DirectFile, buffer: memoryview, offset: int) -> int:
    """Fill the buffer; return how many bytes there were."""
    with memoryview(shard.mmap) as whole:
        address = address_of(whole) + offset
        length = min(len(buffer), len(whole) - offset)
    if not mincore_tells_the_truth(shard) or absent_bytes(address, length):
        return file.read_into(buffer, offset)
    done = 0
    while done < length:
        count = os.preadv(shard.fd, [buffer[done:length]], offset + done)
        if count == 0:
            break
        done += count
    return done
