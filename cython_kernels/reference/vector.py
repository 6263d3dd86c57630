"""The vector kernels in numpy float64: slow, obvious, and what every kernel is compared with.

Functions return their results instead of writing them in place; otherwise arguments and shapes are
those of the kernels of the same names.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


def _f64(x: ArrayLike) -> F64:
    return np.asarray(x, dtype=np.float64)


def sigmoid(x: ArrayLike) -> F64:
    """1 / (1 + exp(-x)), without overflow for any x."""
    x = _f64(x)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def silu(x: ArrayLike) -> F64:
    return _f64(x) * sigmoid(x)


def rms_norm(x: ArrayLike, weight: ArrayLike | None, eps: float) -> F64:
    """Normalize the last axis: x / sqrt(mean(x^2) + eps) * weight."""
    x = _f64(x)
    normed = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return normed if weight is None else normed * _f64(weight)


def rms_norm_gated(x: ArrayLike, gate: ArrayLike, weight: ArrayLike, eps: float) -> F64:
    return rms_norm(x, weight, eps) * silu(gate)


def l2_normalize_heads(x: ArrayLike, eps: float, scale: float) -> F64:
    """scale * x / sqrt(sum(x^2) + eps) over the last axis."""
    x = _f64(x)
    return scale * x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + eps)


def silu_mul(gate: ArrayLike, up: ArrayLike) -> F64:
    return silu(gate) * _f64(up)


def sigmoid_mul(x: ArrayLike, gate: ArrayLike) -> F64:
    return _f64(x) * sigmoid(gate)


def sigmoid_scale_add(x: ArrayLike, gate: ArrayLike, out: ArrayLike) -> F64:
    return _f64(out) + sigmoid(gate) * _f64(x)


def rope(
    x: ArrayLike,
    inv_freq: ArrayLike,
    offset: int,
    *,
    traditional: bool = False,
    scale: float = 1.0,
) -> F64:
    """Rotate the first 2 * len(inv_freq) dims of x (tokens, heads, head_dim).

    The angle itself is a float32 product, as in the models' own code.
    """
    rotated = _f64(x).copy()
    frequencies = np.asarray(inv_freq, dtype=np.float32)
    positions = np.arange(offset, offset + rotated.shape[0]).astype(np.float32) * np.float32(scale)
    angles = (positions[:, None, None] * frequencies).astype(np.float64)
    pairs = frequencies.size
    first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    if traditional:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    a, b = rotated[..., first].copy(), rotated[..., second].copy()
    rotated[..., first] = a * np.cos(angles) - b * np.sin(angles)
    rotated[..., second] = a * np.sin(angles) + b * np.cos(angles)
    return rotated


def attention(q: ArrayLike, keys: ArrayLike, values: ArrayLike, kv_len: int, scale: float) -> F64:
    """Causal attention of q (tokens, heads, head_dim) over the first kv_len rows of the cache
    (kv_heads, capacity, head_dim); token t sees kv_len - tokens + t + 1 of them."""
    q, keys, values = _f64(q), _f64(keys), _f64(values)
    num_tokens, num_heads, _ = q.shape
    group = num_heads // keys.shape[0]
    out = np.empty_like(q)
    for token in range(num_tokens):
        visible = kv_len - num_tokens + token + 1
        for head in range(num_heads):
            scores = keys[head // group, :visible] @ q[token, head] * scale
            weights = np.exp(scores - scores.max())
            out[token, head] = weights @ values[head // group, :visible] / weights.sum()
    return out


def causal_conv(x: ArrayLike, weight: ArrayLike, state: ArrayLike) -> tuple[F64, F64]:
    """silu(depthwise causal convolution) of x (tokens, channels) with weight (taps, channels), and
    the new state: the last taps - 1 inputs."""
    weight = _f64(weight)
    inputs = np.concatenate([_f64(state), _f64(x)])
    num_tokens = inputs.shape[0] - (weight.shape[0] - 1)
    out = sum(tap * inputs[i : i + num_tokens] for i, tap in enumerate(weight))
    return silu(out), inputs[num_tokens:]


def gated_delta_gates(
    a: ArrayLike, b: ArrayLike, a_log: ArrayLike, dt_bias: ArrayLike
) -> tuple[F64, F64]:
    """Decay exp(-exp(a_log) softplus(a + dt_bias)) and step sigmoid(b), both (tokens, heads)."""
    softplus = np.logaddexp(_f64(a) + _f64(dt_bias), 0.0)
    return np.exp(-np.exp(_f64(a_log)) * softplus), sigmoid(b)


def gated_delta(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, g: ArrayLike, beta: ArrayLike, state: ArrayLike
) -> tuple[F64, F64]:
    """The gated delta rule token by token; returns out (tokens, value_heads, value_dim) and the
    new state (value_heads, value_dim, key_dim)."""
    q, k, v, g, beta = (_f64(x) for x in (q, k, v, g, beta))
    state = _f64(state).copy()
    group = v.shape[1] // q.shape[1]
    out = np.empty_like(v)
    for token in range(q.shape[0]):
        for head in range(v.shape[1]):
            key, memory = k[token, head // group], state[head]
            memory *= g[token, head]
            delta = (v[token, head] - memory @ key) * beta[token, head]
            memory += np.outer(delta, key)
            out[token, head] = memory @ q[token, head // group]
    return out, state


def gated_delta_mix(
    qkv: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    conv_state: ArrayLike,
    state: ArrayLike,
    *,
    conv_weight: ArrayLike,
    a_log: ArrayLike,
    dt_bias: ArrayLike,
    value_dim: int,
    num_key_heads: int,
    normalize_eps: float,
) -> tuple[F64, F64, F64]:
    """A gated delta layer up to its norm: out (tokens, value_heads, value_dim), the new conv_state
    and the new state."""
    num_tokens, num_heads = _f64(a).shape
    convolved, conv_state = causal_conv(qkv, conv_weight, conv_state)
    key_channels = (convolved.shape[1] - num_heads * value_dim) // 2
    q, k, v = np.split(convolved, [key_channels, 2 * key_channels], axis=1)
    by_key_head = (num_tokens, num_key_heads, -1)
    q, k = q.reshape(by_key_head), k.reshape(by_key_head)
    q = l2_normalize_heads(q, normalize_eps, q.shape[2] ** -0.5)
    k = l2_normalize_heads(k, normalize_eps, 1.0)
    g, beta = gated_delta_gates(a, b, a_log, dt_bias)
    v = v.reshape(num_tokens, num_heads, value_dim)
    out, state = gated_delta(q, k, v, g, beta, state)
    return out, conv_state, state


def top_k_routing(logits: ArrayLike, top_k: int, mode: str) -> tuple[I32, F64]:
    """Indices by descending logit (ties to the lower index, NaN last) and their scores."""
    logits = _f64(logits)
    ranked = np.where(np.isnan(logits), -np.inf, logits)
    indices = np.argsort(-ranked, axis=-1, kind="stable")[:, :top_k]
    selected = np.take_along_axis(ranked, indices, axis=-1)
    largest = selected[:, :1]
    with np.errstate(invalid="ignore"):
        weights: Any = np.exp(selected - largest)
        pool = np.exp(ranked - largest) if mode == "softmax_then_topk" else weights
        scores = weights / pool.sum(axis=-1, keepdims=True)
    scores[np.isnan(logits).any(axis=-1)] = np.nan
    return indices.astype(np.int32), scores
