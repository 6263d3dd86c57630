"""The uncompressed KV cache: float16 or float32 arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cython_kernels import attention, kv_append
from kandiga_run.kv.prompt_cache import take

_FIRST_CAPACITY = 256


class PlainKVCache:
    """Keys and values (num_kv_heads, capacity, head_dim) of one layer, as float16 or float32.

    The capacity doubles as the sequence grows, up to `max_tokens`: a chat that was given room for
    32k tokens should not hold 32k tokens' worth of memory at its first word.
    """

    def __init__(self, num_kv_heads: int, head_dim: int, max_tokens: int, dtype: DTypeLike) -> None:
        self._max_tokens = max_tokens
        self.length = 0
        capacity = min(_FIRST_CAPACITY, max_tokens)
        self._keys: NDArray[Any] = np.empty((num_kv_heads, capacity, head_dim), dtype)
        self._values: NDArray[Any] = np.empty_like(self._keys)

    @staticmethod
    def bytes_for(num_kv_heads: int, head_dim: int, num_tokens: int, dtype: DTypeLike) -> int:
        """Return what a cache of `num_tokens` tokens holds."""
        return 2 * num_kv_heads * head_dim * num_tokens * np.dtype(dtype).itemsize

    @property
    def format(self) -> str:
        """Return "f16" or "f32"."""
        return "f16" if self._keys.dtype == np.float16 else "f32"

    @property
    def head_shape(self) -> tuple[int, int]:
        """Return (num_kv_heads, head_dim)."""
        num_kv_heads, _, head_dim = self._keys.shape
        return num_kv_heads, head_dim

    @property
    def nbytes(self) -> int:
        """Return the size of both arrays."""
        return self._keys.nbytes + self._values.nbytes

    @property
    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return views of the keys and values held, (num_kv_heads, length, head_dim)."""
        return self._keys[:, : self.length], self._values[:, : self.length]

    def append(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Add keys and values (T, num_kv_heads, head_dim)."""
        length = self.length + keys.shape[0]
        if length > self._keys.shape[1]:
            self._grow(length)
        kv_append(keys, values, self._keys, self._values, self.length)
        self.length = length

    def attend(self, queries: NDArray[np.float32], scale: float, out: NDArray[np.float32]) -> None:
        """Attend causally from the last T tokens; queries, out (T, num_heads, head_dim)."""
        attention(queries, self._keys, self._values, self.length, scale, out)

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens; their memory stays for the next ones."""
        if not 0 <= num_tokens <= self.length:
            raise ValueError(f"cannot trim {num_tokens} of {self.length} tokens")
        self.length -= num_tokens

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return how tokens are held, and the arrays of those held."""
        keys, values = self.arrays
        return {"format": self.format}, {"keys": keys, "values": values}

    def load(self, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Fill an empty cache with what `save` gave; ValueError when it does not fit."""
        if about["format"] != self.format:
            raise ValueError(f"held as {about['format']}, wanted {self.format}")
        num_heads, _, head_dim = self._keys.shape
        length = arrays["keys"].shape[1]
        shape = (num_heads, length, head_dim)
        keys, values = (take(arrays, name, self._keys.dtype, shape) for name in ("keys", "values"))
        if length > self._keys.shape[1]:
            self._grow(length)
        self._keys[:, :length], self._values[:, :length] = keys, values
        self.length = length

    def _grow(self, length: int) -> None:
        if length > self._max_tokens:
            raise ValueError(f"{length} tokens in a cache made for {self._max_tokens}")
        capacity = min(self._max_tokens, max(length, 2 * self._keys.shape[1]))
        self._keys = self._enlarged(self._keys, capacity)
        self._values = self._enlarged(self._values, capacity)

    def _enlarged(self, old: NDArray[Any], capacity: int) -> NDArray[Any]:
        new = np.empty((old.shape[0], capacity, old.shape[2]), old.dtype)
        new[:, : self.length] = old[:, : self.length]
        return new
