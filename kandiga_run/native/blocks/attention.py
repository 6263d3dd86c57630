"""Grouped-query attention, with the query/key norms and the output gate of the Qwen families."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cython_kernels import (
    TIME_ATTENTION,
    TIME_DENSE,
    head_rms_norm,
    label_time,
    matmul,
    matmul_many,
    sigmoid_mul,
)
from kandiga_run.kv.cache import KVCache
from kandiga_run.kv.plain import PlainKVCache
from kandiga_run.native.blocks.rope import Rope
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]


@dataclass(frozen=True)
class AttentionShape:
    """Sizes and options of an attention layer."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    #: RMSNorm over each query and key head, with this epsilon; None leaves heads as they are.
    head_norm_eps: float | None = None
    #: The query projection also gives a gate for each head's output, head by head interleaved.
    gated: bool = False
    bias: bool = False


class Attention:
    """out = o_proj(attend(rope(norm q), rope(norm k), v) [* sigmoid(gate)]); q, k, v project x."""

    def __init__(
        self, weights: Weights, name: str, shape: AttentionShape, rope: Rope, scratch: Scratch
    ) -> None:
        hidden, heads, kv_heads, dim = (
            shape.hidden_size,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
        )
        query_width = heads * dim * (2 if shape.gated else 1)
        self._shape = shape
        self._rope = rope
        self._scratch = scratch
        self._scale = dim**-0.5
        self._q_proj = weights.linear(f"{name}.q_proj", query_width, hidden, bias=shape.bias)
        self._k_proj = weights.linear(f"{name}.k_proj", kv_heads * dim, hidden, bias=shape.bias)
        self._v_proj = weights.linear(f"{name}.v_proj", kv_heads * dim, hidden, bias=shape.bias)
        self._o_proj = weights.linear(f"{name}.o_proj", hidden, heads * dim, bias=shape.bias)
        self._head_norms: tuple[Array, Array, float] | None = None
        if shape.head_norm_eps is not None:
            self._head_norms = (
                weights.norm(f"{name}.q_norm.weight", dim),
                weights.norm(f"{name}.k_norm.weight", dim),
                shape.head_norm_eps,
            )
        scratch.declare("attention/queries", query_width)
        scratch.declare("attention/keys", kv_heads * dim)
        scratch.declare("attention/values", kv_heads * dim)
        scratch.declare("attention/attended", heads * dim)

    def new_cache(self, max_tokens: int, kv_dtype: DTypeLike) -> PlainKVCache:
        """Return an empty cache for this layer."""
        return PlainKVCache(self._shape.num_kv_heads, self._shape.head_dim, max_tokens, kv_dtype)

    def cache_bytes(self, max_tokens: int, kv_dtype: DTypeLike) -> int:
        """Return what this layer's cache holds once it is full."""
        return PlainKVCache.bytes_for(
            self._shape.num_kv_heads, self._shape.head_dim, max_tokens, kv_dtype
        )

    def forward(self, x: Array, cache: KVCache, position: int, out: Array) -> None:
        """Attend from x (T, H), whose first token is at `position`, into out (T, H)."""
        shape, scratch = self._shape, self._scratch
        num_tokens, heads, kv_heads, dim = (
            x.shape[0],
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
        )
        keys = scratch.rows("attention/keys", num_tokens, kv_heads, dim)
        values = scratch.rows("attention/values", num_tokens, kv_heads, dim)
        attended = scratch.rows("attention/attended", num_tokens, heads, dim)
        projected = self._project(x)
        queries = projected[:, :, :dim]
        label_time(TIME_ATTENTION)
        if self._head_norms is not None:
            query_norm, key_norm, eps = self._head_norms
            head_rms_norm(queries, query_norm, eps)
            head_rms_norm(keys, key_norm, eps)
        self._rope.forward(queries, position)
        self._rope.forward(keys, position)
        cache.append(keys, values)
        cache.attend(queries, self._scale, attended)
        if shape.gated:
            sigmoid_mul(attended, projected[:, :, dim:], attended)
        label_time(TIME_DENSE)
        matmul(self._o_proj, scratch.rows("attention/attended", num_tokens, heads * dim), out)

    def _project(self, x: Array) -> Array:
        """Fill keys and values from x (T, H); return queries, and their gates if any.

        The result is (T, num_heads, head_dim), or (T, num_heads, 2 * head_dim) with the gates in
        the second half.
        """
        shape, scratch, num_tokens = self._shape, self._scratch, x.shape[0]
        kv_width = shape.num_kv_heads * shape.head_dim
        head_width = shape.head_dim * (2 if shape.gated else 1)
        flat = scratch.rows("attention/queries", num_tokens, shape.num_heads * head_width)
        keys = scratch.rows("attention/keys", num_tokens, kv_width)
        values = scratch.rows("attention/values", num_tokens, kv_width)
        matmul_many((self._q_proj, self._k_proj, self._v_proj), x, (flat, keys, values))
        return scratch.rows("attention/queries", num_tokens, shape.num_heads, head_width)
