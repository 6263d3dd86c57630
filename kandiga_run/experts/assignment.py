"""Which experts each token chose, turned into work for whole experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Work:
    """Some experts and the tokens they serve, as `expert_mlp` takes it.

    The j-th expert serves the tokens rows[row_offsets[j]:row_offsets[j + 1]]; its results belong
    in rows first_result to end_result of the chunk's results. Both arrays are int32.
    """

    row_offsets: NDArray[np.int32]
    rows: NDArray[np.int32]
    first_result: int
    end_result: int


class Assignment:
    """The (token, choice) pairs of a chunk of T tokens with K choices each, grouped by expert.

    experts (n,) int32: the different experts that were chosen.
    order (T * K,) int32: the row of the results in which pair token * K + choice is found, filled
    by `take`. Rows are handed out as experts are taken, whatever their order.
    """

    def __init__(
        self, indices: NDArray[np.int32], *, order: NDArray[np.int32] | None = None
    ) -> None:
        """Group the choices `indices` (T, K), all different within a token.

        order: memory for the attribute of that name; allocated when not given.
        """
        num_tokens, self._top_k = indices.shape
        flat = indices.reshape(-1)
        self.order = np.empty(flat.size, np.int32) if order is None else order
        self._num_results = 0
        # Without starts each expert serves one pair, which is its place among the experts.
        self._starts: NDArray[np.int64] | None = None
        if num_tokens == 1:
            self.experts = flat
        else:
            self._pairs = np.argsort(flat, kind="stable")
            self.experts, starts = np.unique(flat[self._pairs], return_index=True)
            self._starts = np.append(starts, flat.size)
        self._place_of = {expert: place for place, expert in enumerate(self.experts.tolist())}

    def take_all(self) -> Work:
        """Return the work of all experts, in the order of `experts`, and give results rows."""
        num_results = self.order.size
        if self._starts is None:
            self.order[:] = _counting(num_results)
            work = Work(_counting(num_results + 1), _zeros(num_results), 0, num_results)
        else:
            rows = (self._pairs // self._top_k).astype(np.int32)
            self.order[self._pairs] = _counting(num_results)
            work = Work(self._starts.astype(np.int32), rows, 0, num_results)
        self._num_results = num_results
        return work

    def take(self, experts: Sequence[int]) -> Work:
        """Return the work of some experts, in the order given, and give their results rows."""
        places = [self._place_of[expert] for expert in experts]
        first = self._num_results
        if self._starts is None:
            end = first + len(places)
            rows = np.zeros(len(places), np.int32)
            row_offsets = np.arange(len(places) + 1, dtype=np.int32)
            self.order[places] = np.arange(first, end, dtype=np.int32)
        else:
            pieces = [self._pairs[self._starts[i] : self._starts[i + 1]] for i in places]
            pairs = np.concatenate(pieces)
            end = first + pairs.size
            rows = (pairs // self._top_k).astype(np.int32)
            row_offsets = np.zeros(len(places) + 1, np.int32)
            np.cumsum([piece.size for piece in pieces], out=row_offsets[1:])
            self.order[pairs] = np.arange(first, end, dtype=np.int32)
        self._num_results = end
        return Work(row_offsets, rows, first, end)


@lru_cache(maxsize=16)  # the same few lengths, token after token
def _counting(length: int) -> NDArray[np.int32]:
    return np.arange(length, dtype=np.int32)


@lru_cache(maxsize=16)
def _zeros(length: int) -> NDArray[np.int32]:
    return np.zeros(length, np.int32)
