"""Gated delta net: linear attention with a recurrent state instead of a KV cache.

Sizes: Hk key heads of dimension Dk, Hv value heads of dimension Dv, Hv a multiple of Hk.
conv_dim = 2 * Hk * Dk + Hv * Dv: queries, keys and values side by side, as the convolution sees
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cython_kernels import (
    GatedDeltaHeads,
    Projections,
    SplitInterleaved,
)
from kandiga_run.errors import RunError
from kandiga_run.kv.recurrent import RecurrentState
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]

# Added to the sum of squares when queries and keys are normalized; the models fix it.
_NORMALIZE_EPS = 1e-6


@dataclass(frozen=True)
class GatedDeltaShape:
    """Sizes of a gated delta layer."""

    hidden_size: int
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel_size: int
    norm_eps: float

    def __post_init__(self) -> None:
        if self.num_value_heads % self.num_key_heads:
            raise RunError(
                f"config.json: linear_num_value_heads {self.num_value_heads} is not a multiple "
                f"of linear_num_key_heads {self.num_key_heads}"
            )

    @property
    def key_dim(self) -> int:
        return self.num_key_heads * self.key_head_dim

    @property
    def value_dim(self) -> int:
        return self.num_value_heads * self.value_head_dim

    @property
    def conv_dim(self) -> int:
        return 2 * self.key_dim + self.value_dim


@dataclass(frozen=True)
class Projected:
    """Where the input projections go: qkv (T, conv_dim), z (T, Hv * Dv), b and a (T, Hv).

    T is max_rows of the scratch buffers.
    """

    qkv: Array
    z: Array
    b: Array
    a: Array

    @staticmethod
    def declare(shape: GatedDeltaShape, scratch: Scratch) -> None:
        scratch.declare("gated_delta/qkv", shape.conv_dim)
        scratch.declare("gated_delta/z", shape.value_dim)
        scratch.declare("gated_delta/b", shape.num_value_heads)
        scratch.declare("gated_delta/a", shape.num_value_heads)

    @staticmethod
    def of(shape: GatedDeltaShape, scratch: Scratch) -> Projected:
        return Projected(
            scratch.rows("gated_delta/qkv", scratch.max_rows, shape.conv_dim),
            scratch.rows("gated_delta/z", scratch.max_rows, shape.value_dim),
            scratch.rows("gated_delta/b", scratch.max_rows, shape.num_value_heads),
            scratch.rows("gated_delta/a", scratch.max_rows, shape.num_value_heads),
        )


class InputProjection(Protocol):
    """How a family stores the input projections."""

    def bind(self, x: Array) -> Projected:
        """Fix where `forward` finds x (max_rows, H); return where it leaves its results."""

    def forward(self, num_tokens: int) -> None:
        """Project the first num_tokens rows of x."""


class SeparateProjection:
    """in_proj_qkv, in_proj_z, in_proj_b, in_proj_a: one matrix each."""

    def __init__(
        self, weights: Weights, name: str, shape: GatedDeltaShape, scratch: Scratch
    ) -> None:
        hidden, heads = shape.hidden_size, shape.num_value_heads
        self._matrices = (
            weights.linear(f"{name}.in_proj_qkv", shape.conv_dim, hidden),
            weights.linear(f"{name}.in_proj_z", shape.value_dim, hidden),
            weights.linear(f"{name}.in_proj_b", heads, hidden),
            weights.linear(f"{name}.in_proj_a", heads, hidden),
        )
        self._shape = shape
        self._scratch = scratch
        Projected.declare(shape, scratch)

    def bind(self, x: Array) -> Projected:
        """Fix where `forward` finds x (max_rows, H); return where it leaves its results."""
        projected = Projected.of(self._shape, self._scratch)
        outs = (projected.qkv, projected.z, projected.b, projected.a)
        self._project = Projections(self._matrices, x, outs)
        return projected

    def forward(self, num_tokens: int) -> None:
        """Project the first num_tokens rows of x."""
        self._project(num_tokens)


class FusedProjection:
    """in_proj_qkvz and in_proj_ba: rows grouped by key head.

    Of key head h, in_proj_qkvz holds q (Dk), k (Dk), v and z (Hv/Hk * Dv each); in_proj_ba holds
    b and a (Hv/Hk each). The outputs are put in the order of the separate projections.
    """

    def __init__(
        self, weights: Weights, name: str, shape: GatedDeltaShape, scratch: Scratch
    ) -> None:
        hidden = shape.hidden_size
        self._qkvz_width = shape.conv_dim + shape.value_dim
        self._ba_width = 2 * shape.num_value_heads
        self._matrices = (
            weights.linear(f"{name}.in_proj_qkvz", self._qkvz_width, hidden),
            weights.linear(f"{name}.in_proj_ba", self._ba_width, hidden),
        )
        self._shape = shape
        self._scratch = scratch
        Projected.declare(shape, scratch)
        scratch.declare("gated_delta/qkvz", self._qkvz_width)
        scratch.declare("gated_delta/ba", self._ba_width)

    def bind(self, x: Array) -> Projected:
        """Fix where `forward` finds x (max_rows, H); return where it leaves its results."""
        shape, rows = self._shape, self._scratch.max_rows
        qkvz = self._scratch.rows("gated_delta/qkvz", rows, self._qkvz_width)
        ba = self._scratch.rows("gated_delta/ba", rows, self._ba_width)
        self._project = Projections(self._matrices, x, (qkvz, ba))
        projected = Projected.of(shape, self._scratch)
        by_head = (rows, shape.num_key_heads, -1)
        queries, keys, values = split_qkv(shape, projected.qkv)
        self._split_qkvz = SplitInterleaved(
            qkvz.reshape(by_head),
            (
                queries,
                keys,
                values.reshape(by_head, copy=False),
                projected.z.reshape(by_head),
            ),
        )
        self._split_ba = SplitInterleaved(
            ba.reshape(by_head), (projected.b.reshape(by_head), projected.a.reshape(by_head))
        )
        return projected

    def forward(self, num_tokens: int) -> None:
        """Project the first num_tokens rows of x."""
        self._project(num_tokens)
        self._split_qkvz(num_tokens)
        self._split_ba(num_tokens)


class GatedDeltaNet:
    """Convolve q, k, v; walk the delta rule over the state; normalize, gate by z, project out."""

    has_kv = False

    def __init__(
        self,
        weights: Weights,
        name: str,
        shape: GatedDeltaShape,
        projection: InputProjection,
        scratch: Scratch,
    ) -> None:
        self._shape = shape
        self._projection = projection
        self._scratch = scratch
        kernel_shape = (shape.conv_dim, shape.conv_kernel_size)
        self._conv_weight = _depthwise_kernel(weights, f"{name}.conv1d.weight", kernel_shape)
        self._a_log = weights.vector(f"{name}.A_log", shape.num_value_heads)
        self._dt_bias = weights.vector(f"{name}.dt_bias", shape.num_value_heads)
        self._norm_weight = weights.vector(f"{name}.norm.weight", shape.value_head_dim)
        self._out_proj = weights.linear(f"{name}.out_proj", shape.hidden_size, shape.value_dim)
        scratch.declare("gated_delta/out", shape.value_dim)

    def new_cache(self, max_tokens: int, kv: object) -> RecurrentState:
        """Return the state before the first token; neither argument changes its size."""
        shape = self._shape
        return RecurrentState(
            (shape.conv_kernel_size - 1, shape.conv_dim),
            (shape.num_value_heads, shape.value_head_dim, shape.key_head_dim),
        )

    def cache_bytes(self, max_tokens: int, kv: object) -> int:
        """Return the size of the state."""
        shape = self._shape
        conv_values = (shape.conv_kernel_size - 1) * shape.conv_dim
        return 4 * (conv_values + shape.value_dim * shape.key_head_dim)

    def bind(self, x: Array, out: Array) -> None:
        """Fix where `forward` finds x and leaves its result, both (max_rows, H)."""
        self._projected = self._projection.bind(x)
        self._mixed = self._scratch.rows(
            "gated_delta/out", self._scratch.max_rows, self._shape.value_dim
        )
        self._mix = self._mix_from(0)
        self._mix_rows: list[GatedDeltaHeads] = []
        self._project_out = Projections((self._out_proj,), self._mixed, (out,))

    def _mix_from(self, row: int) -> GatedDeltaHeads:
        """Return the call that takes its tokens from this row on."""
        shape, projected = self._shape, self._projected
        return GatedDeltaHeads(
            projected.qkv[row:],
            projected.z[row:],
            projected.a[row:],
            projected.b[row:],
            self._mixed[row:],
            conv_weight=self._conv_weight,
            a_log=self._a_log,
            dt_bias=self._dt_bias,
            norm_weight=self._norm_weight,
            num_key_heads=shape.num_key_heads,
            norm_eps=shape.norm_eps,
            normalize_eps=_NORMALIZE_EPS,
        )

    def forward(self, num_tokens: int, cache: RecurrentState, position: int) -> None:
        """Advance the state over the first num_tokens rows of x; write those of out."""
        self._projection.forward(num_tokens)
        self._mix(num_tokens, cache.conv, cache.delta)
        self._project_out(num_tokens)

    def forward_sequences(self, caches: Sequence[RecurrentState], positions: Sequence[int]) -> None:
        """Advance state b over row b of x, the next token of sequence b; write row b of out."""
        self._projection.forward(len(caches))
        while len(self._mix_rows) < len(caches):
            self._mix_rows.append(self._mix_from(len(self._mix_rows)))
        for mix, cache in zip(self._mix_rows, caches, strict=False):
            mix(1, cache.conv, cache.delta)
        self._project_out(len(caches))


def split_qkv(shape: GatedDeltaShape, qkv: Array) -> tuple[Array, Array, Array]:
    """Return views of qkv (T, conv_dim): queries and keys (T, Hk, Dk), values (T, Hv, Dv)."""
    num_tokens = qkv.shape[0]
    keys_start, values_start = shape.key_dim, 2 * shape.key_dim
    by_key_head = (num_tokens, shape.num_key_heads, shape.key_head_dim)
    by_value_head = (num_tokens, shape.num_value_heads, shape.value_head_dim)
    return (
        qkv[:, :keys_start].reshape(by_key_head, copy=False),
        qkv[:, keys_start:values_start].reshape(by_key_head, copy=False),
        qkv[:, values_start:].reshape(by_value_head, copy=False),
    )


def _depthwise_kernel(weights: Weights, name: str, shape: tuple[int, int]) -> Array:
    """Return the convolution's weight (kernel_size, channels), as the kernel takes it.

    MLX stores it with a trailing axis of one, Transformers with a middle one: the same values in
    the same order.
    """
    channels, kernel_size = shape
    stored = weights.shape(name)
    trailing = (channels, kernel_size, 1)
    middle = (channels, 1, kernel_size)
    values = weights.vector(name, *(middle if stored == middle else trailing))
    return np.ascontiguousarray(values.reshape(shape).T)
