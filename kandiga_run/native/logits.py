"""Memory for logits, taken again once the caller has dropped those of the token before."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

# A fresh megabyte (248 320 tokens) costs 0.4 ms of page faults, a hundredth of a decode token.
_OWN_REFERENCES = 2  # the attribute, and the argument of getrefcount


class Logits:
    """Hands out uninitialized arrays (T, vocab_size) float32 that nobody else holds."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._one_row = np.empty((1, vocab_size), np.float32)

    @property
    def nbytes(self) -> int:
        """Return the size of the row that is kept."""
        return self._one_row.nbytes

    def rows(self, num_rows: int) -> NDArray[np.float32]:
        """Return an array the caller owns; that of one row is the last one if it was dropped.

        A view of an array holds the array, so a caller that keeps a slice keeps its values.
        """
        if num_rows != 1:
            return np.empty((num_rows, self._vocab_size), np.float32)
        if sys.getrefcount(self._one_row) > _OWN_REFERENCES:
            self._one_row = np.empty((1, self._vocab_size), np.float32)
        return self._one_row
