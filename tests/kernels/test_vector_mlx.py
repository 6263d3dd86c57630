"""The vector kernels against what mlx and mlx-lm compute for the same float32 inputs.

test_vector.py holds every instruction set to the float64 reference; here the fastest one shows that
the reference means what the models mean.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import gated_delta, qwen3_next
from mlx_lm.models.activations import swiglu
from numpy.typing import NDArray

import cython_kernels as ck
from kernels.vector_arguments import normal

# Both sides are float32 and sum in their own order: some roundings (6e-8) of numbers of size one.
CLOSE = {"rtol": 3e-6, "atol": 3e-6}
# mlx takes sine and cosine of the same float32 angle, whose own rounding at position 100000 is
# 0.004: inverse frequencies differing in the last place show up multiplied by the position.
ROPE_ANGLE_ERROR = 2.0**-23


@pytest.fixture(autouse=True)
def _on_the_processor() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def from_mlx(array: mx.array) -> NDArray[np.float32]:
    return np.array(array.astype(mx.float32))


def test_rms_norm() -> None:
    x, weight = normal(1, 3, 300), normal(2, 300)
    out = np.empty_like(x)
    for given in (weight, None):
        ck.rms_norm(x, given, 1e-5, out)
        wanted = mx.fast.rms_norm(mx.array(x), None if given is None else mx.array(given), 1e-5)
        np.testing.assert_allclose(out, from_mlx(wanted), **CLOSE)


def test_gated_norm_is_qwen3_nexts() -> None:
    x, gate, weight = normal(1, 3, 4, 48), normal(2, 3, 4, 48, scale=5), normal(3, 48)
    norm = qwen3_next.Qwen3NextRMSNormGated(48, eps=1e-6)
    norm.weight = mx.array(weight)
    out = np.empty_like(x)
    ck.rms_norm_gated(x, gate, weight, 1e-6, out)
    np.testing.assert_allclose(out, from_mlx(norm(mx.array(x), mx.array(gate))), **CLOSE)


def test_silu_mul_is_swiglu() -> None:
    gate, up = normal(1, 3, 70, scale=5), normal(2, 3, 70)
    out = np.empty_like(gate)
    ck.silu_mul(gate, up, out)
    np.testing.assert_allclose(out, from_mlx(swiglu(mx.array(gate), mx.array(up))), **CLOSE)


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize(("head_dim", "dims"), [(64, 64), (80, 80), (256, 64), (40, 10)])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1.0), (13, 1.0), (4000, 0.25), (100_000, 1.0)])
def test_rope(head_dim: int, dims: int, offset: int, scale: float, traditional: bool) -> None:
    base = 1e6
    x = normal(1, 5, 3, head_dim)
    inv_freq = (base ** (-np.arange(0, dims, 2) / dims)).astype(np.float32)
    rotated = x.copy()
    ck.rope(rotated, inv_freq, offset, traditional=traditional, scale=scale)
    # mlx has heads before tokens.
    by_head = mx.array(x).transpose(1, 0, 2)[None]
    rope = nn.RoPE(dims, traditional=traditional, base=base, scale=scale)
    wanted = from_mlx(rope(by_head, offset=offset)[0].transpose(1, 0, 2))
    tolerance = 3e-6 + 4 * ROPE_ANGLE_ERROR * (offset + 5) * scale
    np.testing.assert_allclose(rotated, wanted, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(rotated[..., dims:], x[..., dims:])


def test_rope_with_given_frequencies() -> None:
    """llama3 and yarn scaling give mlx periods, the kernel their inverse."""
    x = normal(1, 4, 2, 32)
    periods = np.linspace(1, 9000, 16).astype(np.float32)
    rotated = x.copy()
    ck.rope(rotated, 1 / periods, 50)
    by_head = mx.array(x).transpose(1, 0, 2)[None]
    how = {"traditional": False, "base": None, "scale": 1.0, "offset": 50}
    wanted = mx.fast.rope(by_head, 32, freqs=mx.array(periods), **how)[0].transpose(1, 0, 2)
    np.testing.assert_allclose(rotated, from_mlx(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (6, 2, 80), (16, 2, 256)])
@pytest.mark.parametrize(("tokens", "kv_len"), [(1, 1), (1, 300), (7, 7), (5, 40), (3, 1300)])
def test_attention(
    tokens: int, kv_len: int, heads: int, kv_heads: int, dim: int, dtype: type
) -> None:
    q = normal(1, tokens, heads, dim)
    keys, values = (normal(s, kv_heads, kv_len, dim).astype(dtype) for s in (2, 3))
    out = np.empty_like(q)
    ck.attention(q, keys, values, kv_len, dim**-0.5, out)
    wanted = mx.fast.scaled_dot_product_attention(
        mx.array(q).transpose(1, 0, 2)[None],
        mx.array(keys.astype(np.float32))[None],
        mx.array(values.astype(np.float32))[None],
        scale=dim**-0.5,
        mask="causal",
    )
    np.testing.assert_allclose(out, from_mlx(wanted[0].transpose(1, 0, 2)), **CLOSE)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_causal_conv_is_qwen3_nexts(tokens: int) -> None:
    channels, taps = 20, 4
    x, state = normal(1, tokens, channels), normal(2, taps - 1, channels)
    conv = nn.Conv1d(channels, channels, taps, groups=channels, bias=False)
    conv.weight = mx.array(normal(3, channels, taps, 1))
    inputs = mx.concatenate([mx.array(state), mx.array(x)])[None]
    wanted = from_mlx(nn.silu(conv(inputs))[0])
    out = np.empty_like(x)
    weight = np.ascontiguousarray(from_mlx(conv.weight)[:, :, 0].T)
    ck.causal_conv(x, weight, state, out)
    np.testing.assert_allclose(out, wanted, **CLOSE)
    np.testing.assert_array_equal(state, from_mlx(inputs[0, -(taps - 1) :]))


def test_l2_normalize_is_normalize_qk() -> None:
    q, k = normal(1, 3, 2, 40), normal(2, 3, 2, 40)
    scale = 40**-0.5
    wanted = gated_delta.normalize_qk(mx.array(q), mx.array(k), inv_scale=scale, eps=1e-6)
    ck.l2_normalize_heads(q, 1e-6, scale)
    ck.l2_normalize_heads(k, 1e-6, 1.0)
    np.testing.assert_allclose(q, from_mlx(wanted[0]), **CLOSE)
    np.testing.assert_allclose(k, from_mlx(wanted[1]), **CLOSE)


@pytest.mark.parametrize("tokens", [1, 2, 11])
def test_gated_delta_is_mlx_lms(tokens: int) -> None:
    key_heads, heads, key_dim, value_dim = 2, 6, 32, 24
    q, k = normal(1, tokens, key_heads, key_dim), normal(2, tokens, key_heads, key_dim)
    ck.l2_normalize_heads(q, 1e-6, key_dim**-0.5)
    ck.l2_normalize_heads(k, 1e-6, 1.0)
    v = normal(3, tokens, heads, value_dim)
    a, b = normal(4, tokens, heads), normal(5, tokens, heads)
    a_log, dt_bias = np.log(np.linspace(0.1, 16, heads)).astype(np.float32), normal(6, heads)
    state = normal(7, heads, value_dim, key_dim)
    batch = (mx.array(array)[None] for array in (q, k, v, a, b))
    wanted, wanted_state = gated_delta.gated_delta_update(
        *batch, mx.array(a_log), mx.array(dt_bias), mx.array(state)[None], use_kernel=False
    )
    g, beta, out = np.empty_like(a), np.empty_like(b), np.empty_like(v)
    ck.gated_delta_gates(a, b, a_log, dt_bias, g, beta)
    ck.gated_delta(q, k, v, g, beta, state, out)
    np.testing.assert_allclose(out, from_mlx(wanted[0]), **CLOSE)
    np.testing.assert_allclose(state, from_mlx(wanted_state[0]), **CLOSE)


def test_split_interleaved_is_qwen3_nexts_ordering() -> None:
    tokens, key_heads, heads, key_dim, value_dim = 3, 2, 6, 8, 5
    group = heads // key_heads
    shape = SimpleNamespace(
        num_k_heads=key_heads, head_k_dim=key_dim, num_v_heads=heads, head_v_dim=value_dim
    )
    qkvz = normal(1, tokens, key_heads, 2 * key_dim + 2 * group * value_dim)
    ba = normal(2, tokens, key_heads, 2 * group)
    order = qwen3_next.Qwen3NextGatedDeltaNet.fix_query_key_value_ordering
    wanted = order(
        shape, mx.array(qkvz.reshape(1, tokens, -1)), mx.array(ba.reshape(1, tokens, -1))
    )
    # q, k and v go side by side into the convolution's input.
    key_width, value_width = key_heads * key_dim, heads * value_dim
    qkv = np.empty((tokens, 2 * key_width + value_width), np.float32)
    z = np.empty((tokens, key_heads, group * value_dim), np.float32)
    b, a = np.empty((2, tokens, key_heads, group), np.float32)
    parts = np.split(qkv, (key_width, 2 * key_width), axis=1)
    parts = [part.reshape(tokens, key_heads, -1) for part in parts]
    assert all(np.shares_memory(part, qkv) for part in parts)
    ck.split_interleaved(qkvz, [*parts, z])
    ck.split_interleaved(ba, [b, a])
    for seen, want in zip((*parts, z, b, a), wanted, strict=True):
        np.testing.assert_array_equal(seen.reshape(-1), from_mlx(want).reshape(-1))


def mixtral_scores(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    indices = mx.argpartition(-logits, kth=k - 1, axis=-1)[..., :k]
    return indices, mx.softmax(mx.take_along_axis(logits, indices, axis=-1), axis=-1, precise=True)


def qwen_scores(logits: mx.array, k: int, normalized: bool) -> tuple[mx.array, mx.array]:
    gates = mx.softmax(logits, axis=-1, precise=True)
    indices = mx.argpartition(gates, kth=-k, axis=-1)[..., -k:]
    scores = mx.take_along_axis(gates, indices, axis=-1)
    return indices, scores / scores.sum(axis=-1, keepdims=True) if normalized else scores


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (128, 8), (512, 10), (60, 4), (5, 5)])
@pytest.mark.parametrize(
    "mode", ["softmax_then_topk", "softmax_then_topk_normalized", "topk_then_softmax"]
)
def test_routing(num_experts: int, top_k: int, mode: str) -> None:
    logits = normal(1, 6, num_experts, scale=2.0)
    if mode == "topk_then_softmax":
        wanted_indices, wanted = mixtral_scores(mx.array(logits), top_k)
    else:
        wanted_indices, wanted = qwen_scores(mx.array(logits), top_k, mode.endswith("normalized"))
    indices, scores = np.empty((6, top_k), np.int32), np.empty((6, top_k), np.float32)
    ck.top_k_routing(logits, top_k, mode, indices, scores)
    # mlx leaves the selected in no order.
    order = np.argsort(-from_mlx(wanted), axis=-1, kind="stable")
    np.testing.assert_array_equal(
        indices, np.take_along_axis(np.array(wanted_indices), order, axis=-1)
    )
    np.testing.assert_allclose(
        scores, np.take_along_axis(from_mlx(wanted), order, axis=-1), **CLOSE
    )
