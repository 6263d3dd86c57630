"""Tensors of gigabytes in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kandiga_pack.sources.base import Source, TensorInfo

# Dense tensors travel in slices of about this size; an embedding table may have gigabytes.
SLICE_BYTES = 8 << 20


def iter_slices(source: Source, info: TensorInfo) -> Iterator[np.ndarray]:
    """Yield a tensor's data in order, a slice of rows of about SLICE_BYTES at a time."""
    if not info.shape:
        yield source.read(info.name)
        return
    step = max(1, SLICE_BYTES // max(info.row_bytes, 1))
    for start in range(0, info.shape[0], step):
        yield source.read(info.name, start, min(step, info.shape[0] - start))
