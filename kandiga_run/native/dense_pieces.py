"""Dense tensors as the stretches of a file in which they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from formats import DenseTensor


def pieces(tensors: Iterable[DenseTensor], piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset_bytes, length) covering the tensors, each within one `piece_bytes` of the file.

    Small neighbours come together: pieces end at multiples of `piece_bytes`, not with tensors.
    """
    start = end = 0
    for tensor in sorted(tensors, key=lambda each: each.offset_bytes):
        if end and tensor.offset_bytes == end:
            end += tensor.length_bytes
            continue
        yield from _split(start, end, piece_bytes)
        start, end = tensor.offset_bytes, tensor.offset_bytes + tensor.length_bytes
    yield from _split(start, end, piece_bytes)


def _split(start: int, end: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(end, (start // piece_bytes + 1) * piece_bytes)
        yield start, stop - start
        start = stop
