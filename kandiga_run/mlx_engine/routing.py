"""The chosen experts of a batch of tokens, regrouped by expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Routing:
    """Which expert serves which (token, choice) pair. Pair p is choice p % K of token p // K.

    experts (n,) int32: the different experts, ascending.
    num_choices: K.
    """

    experts: NDArray[np.int32]
    num_choices: int
    num_pairs: int
    _pairs: NDArray[np.int32]  # all pairs, grouped by expert
    _starts: NDArray[np.int64]  # (n + 1,) where each expert's pairs begin

    @staticmethod
    def of(indices: NDArray[np.int32]) -> Routing:
        """Group indices (T, K); the pairs of an expert keep the order of the tokens."""
        flat = indices.reshape(-1)
        experts, counts = np.unique(flat, return_counts=True)
        starts = np.zeros(experts.size + 1, np.int64)
        np.cumsum(counts, out=starts[1:])
        pairs = np.argsort(flat, kind="stable").astype(np.int32)
        return Routing(experts, indices.shape[1], flat.size, pairs, starts)

    def pairs_of(self, experts: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the pairs (R,) of some experts, one expert after the other, and offsets (n+1,)."""
        where = np.searchsorted(self.experts, experts)
        chunks = [self._pairs[self._starts[i] : self._starts[i + 1]] for i in where]
        offsets = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum([chunk.size for chunk in chunks], out=offsets[1:])
        return np.concatenate(chunks), offsets
