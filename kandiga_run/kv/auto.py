"""A KV cache that is float16 while it is short and compressed once it is long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cython_kernels import add_query_energies
from kandiga_run.kv.plain import PlainKVCache
from kandiga_run.kv.prompt_cache import take
from kandiga_run.kv.turboquant import Coding, TurboQuantKVCache

#: From here on the time and memory saved are worth the error (specs/turboquant.md, "auto").
AUTO_TOKENS = 16384
#: Tokens a chunk may go beyond that: it began below, so its results are the plain cache's.
CHUNK_ROOM = 512


class AutoKVCache:
    """A plain cache that codes itself when tokens come after the first `AUTO_TOKENS`.

    Until then every result is the plain cache's own.
    """

    def __init__(
        self,
        num_kv_heads: int,
        head_dim: int,
        max_tokens: int,
        dtype: DTypeLike,
        coding: Coding,
        plain_tokens: int = AUTO_TOKENS,
    ) -> None:
        self._shape = (num_kv_heads, head_dim, max_tokens)
        self._coding = coding
        self._plain_tokens = plain_tokens
        #: What the compressed cache will want to know of the queries that came before it.
        self._energies = np.zeros((num_kv_heads, head_dim), np.float32)
        self._cache: PlainKVCache | TurboQuantKVCache = PlainKVCache(
            num_kv_heads, head_dim, min(max_tokens, plain_tokens + CHUNK_ROOM), dtype
        )

    @property
    def format(self) -> str:
        """Return how tokens are held at the moment."""
        return self._cache.format

    @property
    def length(self) -> int:
        """Return the number of tokens held."""
        return self._cache.length

    @property
    def head_shape(self) -> tuple[int, int]:
        """Return (num_kv_heads, head_dim)."""
        return self._cache.head_shape

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays held."""
        return self._cache.nbytes + self._energies.nbytes

    def append(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Add keys and values (T, num_kv_heads, head_dim)."""
        is_long = self.length >= self._plain_tokens
        is_long |= self.length + keys.shape[0] > self._plain_tokens + CHUNK_ROOM
        if is_long and isinstance(self._cache, PlainKVCache):
            coded = TurboQuantKVCache(*self._shape, self._coding)
            coded.take_plain(*self._cache.arrays, self._energies)
            self._cache = coded
        self._cache.append(keys, values)

    def attend(self, queries: NDArray[np.float32], scale: float, out: NDArray[np.float32]) -> None:
        """Attend causally from the last T tokens; queries, out (T, num_heads, head_dim)."""
        self._cache.attend(queries, scale, out)
        if isinstance(self._cache, PlainKVCache):
            add_query_energies(queries, self._energies)

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return how tokens are held, and the arrays of those held."""
        about, arrays = self._cache.save()
        return about, {"energies": self._energies, **arrays}

    def load(self, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Fill an empty cache with what `save` gave; ValueError when it does not fit."""
        if about["format"] == self._coding.name:
            self._cache = TurboQuantKVCache(*self._shape, self._coding)
        self._cache.load(about, arrays)
        self._energies[:] = take(arrays, "energies", np.float32, self._energies.shape)

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens; what has been coded stays coded."""
        self._cache.trim(num_tokens)
