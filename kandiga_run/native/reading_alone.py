"""How fast a token's weights are read where they lie, when nothing is computed with them.

Memory is not equally fast everywhere: pages of a file that were written in small pieces, and what a
virtual machine's host put elsewhere, are read at half the speed of fresh huge pages. What a token
could reach at best is therefore measured in the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cython_kernels import READ_ORDERS, Matrix, read_ranges
from kandiga_run.container import Model
from kandiga_run.experts.store import ExpertStore

#: (address, bytes)
Extent = tuple[int, int]

# One thread's share at a time: 20 us, so that both end together and beginnings count little.
_PIECE_BYTES = 512 << 10


def bytes_per_second(extents: Iterable[Extent]) -> float:
    """Read every extent once with each way through memory; return the speed of the fastest."""
    pieces = np.array([piece for extent in extents for piece in _cut(extent)], np.uint64)
    starts, lengths = np.ascontiguousarray(pieces[:, 0]), np.ascontiguousarray(pieces[:, 1])
    seconds = []
    for order in READ_ORDERS:
        started = perf_counter()
        read_ranges(starts, lengths, order)
        seconds.append(perf_counter() - started)
    return float(lengths.sum()) / min(seconds)


def dense_extents(matrices: Iterable[Matrix]) -> Iterator[Extent]:
    """Yield where the parts of matrices lie."""
    for matrix in matrices:
        yield from matrix.extents


def expert_extents(
    model: Model, store: ExpertStore, chosen: Sequence[NDArray[np.int32]]
) -> list[Extent] | None:
    """Return where experts lie, chosen[i] (n,) of the i-th layer; None when one is not in memory.

    The addresses are valid until the store is used again.
    """
    extents: list[Extent] = []
    for layer, experts in zip(model.container.layers, chosen, strict=True):
        addresses = store.addresses(layer, experts)
        if addresses is None:
            return None
        payload_bytes = model.container.layout(layer).payload_bytes
        extents += [(address, payload_bytes) for address in addresses.tolist()]
    return extents


def _cut(extent: Extent) -> Iterator[Extent]:
    address, num_bytes = extent
    # Reads begin on lines of the cache.
    begin, end = -(-address // 64) * 64, address + num_bytes
    for start in range(begin, end, _PIECE_BYTES):
        yield start, min(_PIECE_BYTES, end - start)
