"""Grouped-query attention, with the query/key norms and the output gate of the Qwen families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cython_kernels import (
    TIME_ATTENTION,
    TIME_DENSE,
    Projections,
    RotatedHeads,
    label_time,
    sigmoid_mul,
)
from kandiga_run.kv.cache import KVCache
from kandiga_run.kv.formats import LayerFormat
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

    has_kv = True

    def __init__(
        self, weights: Weights, name: str, shape: AttentionShape, rope: Rope, scratch: Scratch
    ) -> None:
        hidden, heads, kv_heads, dim = (
            shape.hidden_size,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
        )
        self._query_dim = dim * (2 if shape.gated else 1)
        query_width = heads * self._query_dim
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

    def new_cache(self, max_tokens: int, kv: LayerFormat) -> KVCache:
        """Return an empty cache for this layer."""
        return kv.new_cache(self._shape.num_kv_heads, self._shape.head_dim, max_tokens)

    def cache_bytes(self, max_tokens: int, kv: LayerFormat) -> int:
        """Return what this layer's cache holds once it is full."""
        return kv.bytes_for(self._shape.num_kv_heads, self._shape.head_dim, max_tokens)

    def bind(self, x: Array, out: Array) -> None:
        """Fix where `forward` finds x and leaves its result, both (max_rows, H)."""
        shape, scratch, rows = self._shape, self._scratch, self._scratch.max_rows
        queries, keys, values, attended = (
            scratch.rows(f"attention/{name}", rows, width)
            for name, width in (
                ("queries", shape.num_heads * self._query_dim),
                ("keys", shape.num_kv_heads * shape.head_dim),
                ("values", shape.num_kv_heads * shape.head_dim),
                ("attended", shape.num_heads * shape.head_dim),
            )
        )
        self._project = Projections(
            (self._q_proj, self._k_proj, self._v_proj), x, (queries, keys, values)
        )
        all_queries, _, all_keys, _, _ = self._heads(rows)
        self._norm_and_rotate_rows: list[RotatedHeads] = []
        self._norm_and_rotate = self._rope.bind(all_queries, all_keys, self._head_norms)
        self._project_out = Projections((self._o_proj,), attended, (out,))

    def forward(self, num_tokens: int, cache: KVCache, position: int) -> None:
        """Attend from the first num_tokens rows of x, the first at `position`, into out."""
        self._project(num_tokens)
        label_time(TIME_ATTENTION)
        queries, gates, keys, values, attended = self._heads(num_tokens)
        self._norm_and_rotate(num_tokens, position)
        cache.append(keys, values)
        cache.attend(queries, self._scale, attended)
        if self._shape.gated:
            sigmoid_mul(attended, gates, attended)
        label_time(TIME_DENSE)
        self._project_out(num_tokens)

    def forward_sequences(self, caches: Sequence[KVCache], positions: Sequence[int]) -> None:
        """Attend from row b of x, the next token of sequence b at positions[b], into row b of out.

        There are B caches. Projections are computed for all sequences together.
        """
        num_sequences = len(caches)
        self._project(num_sequences)
        label_time(TIME_ATTENTION)
        queries, gates, keys, values, attended = self._heads(num_sequences)
        for row, (cache, position) in enumerate(zip(caches, positions, strict=True)):
            own = slice(row, row + 1)
            self._norm_and_rotate_row(row)(1, position)
            cache.append(keys[own], values[own])
            cache.attend(queries[own], self._scale, attended[own])
        if self._shape.gated:
            sigmoid_mul(attended, gates, attended)
        label_time(TIME_DENSE)
        self._project_out(num_sequences)

    def _norm_and_rotate_row(self, row: int) -> RotatedHeads:
        """Return the call for one row of a batch of sequences."""
        while len(self._norm_and_rotate_rows) <= row:
            next_row = len(self._norm_and_rotate_rows)
            queries, _, keys, _, _ = self._heads(next_row + 1)
            call = self._rope.bind(queries[next_row:], keys[next_row:], self._head_norms)
            self._norm_and_rotate_rows.append(call)
        return self._norm_and_rotate_rows[row]

    def _heads(self, num_tokens: int) -> tuple[Array, Array, Array, Array, Array]:
        """Return views of the first tokens: queries, gates, keys, values and attended.

        They are (T, num_heads, head_dim), keys and values of num_kv_heads; without a gate, gates
        have no dimensions.
        """
        shape, rows, dim = self._shape, self._scratch.rows, self._shape.head_dim
        projected = rows("attention/queries", num_tokens, shape.num_heads, self._query_dim)
        return (
            projected[:, :, :dim],
            projected[:, :, dim:],
            rows("attention/keys", num_tokens, shape.num_kv_heads, dim),
            rows("attention/values", num_tokens, shape.num_kv_heads, dim),
            rows("attention/attended", num_tokens, shape.num_heads, dim),
        )
