from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_I32 = NDArray[np.int32]
_U64 = NDArray[np.uint64]

def cpu_count() -> int: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def isa() -> str: ...
def available_isas() -> tuple[str, ...]: ...
def _force_isa(name: str) -> None: ...

class Matrix:
    nbytes: int
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @staticmethod
    def affine(
        weight: Any,
        scales: Any,
        biases: Any,
        *,
        out_features: int,
        in_features: int,
        bits: int,
        group_size: int,
        scale_dtype: str,
        bias: _F32 | None = None,
    ) -> Matrix: ...
    @staticmethod
    def dense(
        weight: Any, *, out_features: int, in_features: int, dtype: str, bias: _F32 | None = None
    ) -> Matrix: ...

def matmul(matrix: Matrix, x: _F32, out: _F32) -> None: ...
def matmul_many(matrices: Sequence[Matrix], x: _F32, outs: Sequence[_F32]) -> None: ...
def embed_rows(matrix: Matrix, ids: _I32, out: _F32) -> None: ...

class ExpertLayout:
    hidden_size: int
    moe_intermediate_size: int
    payload_bytes: int
    def __init__(
        self,
        parts: Mapping[tuple[str, str], Mapping[str, Any]],
        *,
        hidden_size: int,
        moe_intermediate_size: int,
    ) -> None: ...

def expert_scratch(layout: ExpertLayout, max_rows: int) -> _F32: ...
def expert_mlp(
    layout: ExpertLayout,
    addresses: _U64,
    row_offsets: _I32,
    rows: _I32,
    x: _F32,
    out: _F32,
    scratch: _F32,
) -> None: ...
def moe_combine(expert_out: _F32, scores: _F32, order: _I32, out: _F32) -> None: ...

# A float32 array argument of the calls below has a contiguous last axis; its other axes may have
# any stride, so slices of a fused projection can be passed. T tokens, n heads, D head_dim. Nothing
# is allocated; wrong shapes, dtypes and strides are ValueErrors.

def rms_norm(x: _F32, weight: _F32 | None, eps: float, out: _F32) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight over the last axis; 1 to 3 dims; out may be x."""

def head_rms_norm(x: _F32, weight: _F32 | None, eps: float) -> None:
    """rms_norm of each head of x (T, n, D) in place; weight (D,)."""

def add_rms_norm(x: _F32, delta: _F32, weight: _F32 | None, eps: float, out: _F32) -> None:
    """x += delta in place, then out = rms_norm(x); all (T, H)."""

def rms_norm_gated(x: _F32, gate: _F32, weight: _F32, eps: float, out: _F32) -> None:
    """out = rms_norm(x) * silu(gate); all (T, n, D), weight (D,); out may be x or gate."""

def l2_normalize_heads(x: _F32, eps: float, scale: float) -> None:
    """x *= scale / sqrt(sum(x^2) + eps) over the last axis, in place.

    mlx_lm's gated_delta.normalize_qk is scale = D**-0.5 for q and 1 for k, eps = 1e-6.
    """

def add(x: _F32, y: _F32) -> None:
    """x += y."""

def silu_mul(gate: _F32, up: _F32, out: _F32) -> None:
    """out = silu(gate) * up; out may be either."""

def sigmoid_mul(x: _F32, gate: _F32, out: _F32) -> None:
    """out = x * sigmoid(gate); out may be either."""

def sigmoid_scale_add(x: _F32, gate: _F32, out: _F32) -> None:
    """out += sigmoid(gate) * x; x and out (T, H), gate (T, 1)."""

def exponential(x: _F32, out: _F32) -> None:
    """out = exp(x), the exponential that every kernel uses; within 1.1 ulp, subnormals included."""

def split_interleaved(x: _F32, outs: Sequence[_F32]) -> None:
    """Copy slices of the last axis of x (T, n, W) to outs[i] (T, n, w_i), the sum of w_i being W.

    De-interleaves projections that keep the parts of a head together: q and gate of gated
    attention, q k v z and b a of qwen3_next.
    """

def rope(
    x: _F32, inv_freq: _F32, offset: int, *, traditional: bool = False, scale: float = 1.0
) -> None:
    """Rotate the first 2 * len(inv_freq) dims of each head of x (T, n, D), in place.

    Token t has angle (offset + t) * scale * inv_freq, in float32. Pairs are (i, i + half), or
    (2i, 2i + 1) when traditional, as in mlx.nn.RoPE.
    """

def kv_append(
    keys_new: _F32, values_new: _F32, keys: NDArray[Any], values: NDArray[Any], offset: int
) -> None:
    """Write (T, Hkv, D) into caches (Hkv, capacity, D), float32 or float16, from offset on."""

def attention(
    q: _F32, keys: NDArray[Any], values: NDArray[Any], kv_len: int, scale: float, out: _F32
) -> None:
    """Causal attention of q (T, Hq, D) over the first kv_len rows of a cache (Hkv, capacity, D).

    Token t sees kv_len - T + t + 1 keys. Query head h reads KV head h // (Hq / Hkv). The result
    does not depend on the number of threads. MemoryError when a long context cannot be split.
    """

def causal_conv(x: _F32, weight: _F32, state: _F32, out: _F32) -> None:
    """out = silu(depthwise causal convolution of x); x and out (T, C).

    weight (K, C), contiguous: the transpose of a checkpoint's (C, K, 1), so that neighbouring
    channels are neighbours in memory. state (K - 1, C): the last inputs, oldest first, updated.
    """

def gated_delta_gates(
    a: _F32, b: _F32, a_log: _F32, dt_bias: _F32, g_out: _F32, beta_out: _F32
) -> None:
    """g = exp(-exp(a_log) * softplus(a + dt_bias)), beta = sigmoid(b); (T, Hv), vectors (Hv,)."""

def gated_delta(
    q: _F32, k: _F32, v: _F32, g: _F32, beta: _F32, state: _F32, out: _F32
) -> None:
    """The gated delta rule, T tokens in order: S = g S; S += beta (v - S k) k^T; out = S q.

    q, k (T, Hk, Dk), normalized; v, out (T, Hv, Dv); g, beta (T, Hv); state (Hv, Dv, Dk) updated.
    Value head h reads key head h // (Hv / Hk).
    """

def top_k_routing(logits: _F32, top_k: int, mode: str, indices: _I32, scores: _F32) -> None:
    """Select top_k of logits (T, E) into indices and scores (T, top_k), by descending logit.

    Ties go to the lower index. mode: "softmax_then_topk", "softmax_then_topk_normalized" or
    "topk_then_softmax". A NaN logit ranks last and makes the scores of its token NaN.
    """
