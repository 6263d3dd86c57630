"""What a choice of `--kv` means for each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kandiga_run.kv.auto import AUTO_TOKENS, CHUNK_ROOM, AutoKVCache
from kandiga_run.kv.cache import KVCache
from kandiga_run.kv.choices import BITS, KVChoice
from kandiga_run.kv.plain import PlainKVCache
from kandiga_run.kv.turboquant import MAX_HEAD_DIM, Coding, TurboQuantKVCache

#: What boundary layers have.
PROTECTED = Coding(8, 8)
#: What "auto" compresses to, once a sequence is longer than AUTO_TOKENS.
AUTO_CODING = Coding(*BITS["k4v3"])


@dataclass(frozen=True)
class LayerFormat:
    """How one layer holds its keys and values; `coding` None leaves them as they are."""

    dtype: np.dtype[np.generic]
    coding: Coding | None = None
    #: Tokens until which nothing is coded; None: from the first block on.
    plain_tokens: int | None = None

    def new_cache(self, num_kv_heads: int, head_dim: int, max_tokens: int) -> KVCache:
        """Return an empty cache with room for `max_tokens` tokens."""
        coding = self._coding_for(head_dim)
        if coding is None or (self.plain_tokens is not None and max_tokens <= self.plain_tokens):
            return PlainKVCache(num_kv_heads, head_dim, max_tokens, self.dtype)
        if self.plain_tokens is None:
            return TurboQuantKVCache(num_kv_heads, head_dim, max_tokens, coding)
        return AutoKVCache(num_kv_heads, head_dim, max_tokens, self.dtype, coding)

    def bytes_for(self, num_kv_heads: int, head_dim: int, num_tokens: int) -> int:
        """Return the most that a cache holds on its way to `num_tokens` tokens."""
        coding = self._coding_for(head_dim)
        if coding is None:
            return PlainKVCache.bytes_for(num_kv_heads, head_dim, num_tokens, self.dtype)
        coded_bytes = TurboQuantKVCache.bytes_for(num_kv_heads, head_dim, num_tokens, coding)
        if self.plain_tokens is None:
            return coded_bytes
        tokens = min(num_tokens, self.plain_tokens + CHUNK_ROOM)
        plain_bytes = PlainKVCache.bytes_for(num_kv_heads, head_dim, tokens, self.dtype)
        return plain_bytes if tokens == num_tokens else max(plain_bytes, coded_bytes)

    def _coding_for(self, head_dim: int) -> Coding | None:
        """Return the coding; "auto" leaves alone what the code cannot hold."""
        if self.plain_tokens is not None and head_dim > MAX_HEAD_DIM:
            return None
        return self.coding


@dataclass(frozen=True)
class KVPlan:
    """The choice for a whole model. `dtype` is what uncoded layers and "auto" begin with."""

    choice: KVChoice
    dtype: np.dtype[np.generic]
    qjl: bool = False
    #: So many first and last layers with keys and values have 8 bits.
    protected_layers: int = 0

    @property
    def name(self) -> str:
        """Return the choice with its options, such as "kv3-qjl, 2 boundary layers kv8"."""
        qjl = "-qjl" if self.qjl else ""
        protect = f", {self.protected_layers} boundary layers {PROTECTED.name}"
        return f"{self.choice}{qjl}{protect if self.protected_layers else ''}"

    def layer(self, index: int, num_layers: int) -> LayerFormat:
        """Return the format of layer `index` of the `num_layers` that have keys and values.

        Layers without them, as most of a hybrid model's, are not counted.
        """
        if self.choice == "fp16":
            return LayerFormat(self.dtype)
        if self.choice == "auto":
            return LayerFormat(self.dtype, AUTO_CODING, AUTO_TOKENS)
        if min(index, num_layers - 1 - index) < self.protected_layers:
            return LayerFormat(self.dtype, PROTECTED)
        return LayerFormat(self.dtype, Coding(*BITS[self.choice], self.qjl))
