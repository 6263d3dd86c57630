"""The seam between attention and whatever holds its keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class KVCache(Protocol):
    """Keys and values of one layer and one sequence."""

    @property
    def format(self) -> str:
        """Return how keys and values are held, such as "f16"."""

    @property
    def length(self) -> int:
        """Return the number of tokens held."""

    @property
    def head_shape(self) -> tuple[int, int]:
        """Return (num_kv_heads, head_dim)."""

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays really held."""

    def append(self, keys: Array, values: Array) -> None:
        """Add the keys and values (T, num_kv_heads, head_dim) float32 of T tokens.

        The arrays must stay as they are until `attend`: a cache may still read them there.
        """

    def attend(self, queries: Array, scale: float, out: Array) -> None:
        """Attend from the last T tokens to everything before them, causally.

        queries and out are (T, num_heads, head_dim) float32; the T tokens have been appended.
        """

    def save(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return how tokens are held (plain JSON values), and the arrays of those held."""

    def load(self, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Fill an empty cache with what `save` gave; ValueError when it does not fit."""

    def trim(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens."""
