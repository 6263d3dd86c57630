"""The matrix kernels in numpy float64: slow, obvious, and what the tests compare with.

bfloat16 is carried as uint16, as everywhere in this package.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def to_float64(array: NDArray[np.generic], dtype: str) -> F64:
    """Values of an array stored as "f16", "bf16" (in uint16) or "f32"."""
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def unpack_codes(weight: NDArray[np.uint32], bits: int) -> NDArray[np.int64]:
    """(out, in) codes of a packed weight (out, in * bits / 32): a bit stream, lowest bit first."""
    stream = np.unpackbits(weight.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(len(weight), -1, bits).astype(np.int64) @ (1 << np.arange(bits))


def pack_codes(codes: NDArray[np.integer], bits: int) -> NDArray[np.uint32]:
    """Inverse of unpack_codes."""
    stream = (codes[..., None] >> np.arange(bits)) & 1
    packed = np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")
    return packed.view("<u4").astype(np.uint32)


def dequantize(
    weight: NDArray[np.uint32],
    scales: NDArray[np.generic],
    biases: NDArray[np.generic],
    *,
    bits: int,
    group_size: int,
    scale_dtype: str,
) -> F64:
    """W (out, in) = scales * code + biases; scales and biases are (out, in / group_size)."""
    spread = [np.repeat(to_float64(a, scale_dtype), group_size, axis=1) for a in (scales, biases)]
    return spread[0] * unpack_codes(weight, bits) + spread[1]


def matmul(w: F64, x: NDArray[np.floating], bias: NDArray[np.floating] | None = None) -> F64:
    """x (T, in) W^T (+ bias) for a weight W (out, in)."""
    y = x.astype(np.float64) @ w.T
    return y if bias is None else y + bias.astype(np.float64)


def round_to_steps(
    x: NDArray[np.floating], group_size: int, arithmetic: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Steps (T, in) and step sizes (T, in / group_size) of x (T, in) as "int16" or "int8" has it.

    In float32, as the kernels: every instruction set rounds to the same integers.
    """
    most = np.float32({"int16": 127 * 256 + 127, "int8": 127}[arithmetic])
    groups = x.astype(np.float32).reshape(len(x), x.shape[1] // group_size, group_size)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    largest[largest < np.float32(2.0**-100)] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(largest > 0, np.rint(groups * (most / largest)), 0)
    return steps.reshape(x.shape).astype(np.int64), (largest / most)[..., 0]


def rounded(x: NDArray[np.floating], group_size: int, arithmetic: str) -> F64:
    """The x (T, in) that a matrix of this arithmetic really multiplies with."""
    if arithmetic == "exact":
        return x.astype(np.float64)
    steps, sizes = round_to_steps(x, group_size, arithmetic)
    return steps * np.repeat(sizes.astype(np.float64), group_size, axis=1)


def silu(x: F64) -> F64:
    """x * sigmoid(x)."""
    with np.errstate(over="ignore"):
        return x / (1.0 + np.exp(-x))


def expert_mlp(
    gate: F64,
    up: F64,
    down: F64,
    x: NDArray[np.floating],
    biases: Sequence[NDArray[np.floating] | None] = (None, None, None),
) -> F64:
    """down(silu(gate(x)) * up(x)) for x (T, hidden)."""
    h = silu(matmul(gate, x, biases[0])) * matmul(up, x, biases[1])
    return matmul(down, h, biases[2])


def moe_combine(
    expert_out: NDArray[np.floating],
    scores: NDArray[np.floating],
    order: NDArray[np.integer],
    out: NDArray[np.floating],
) -> F64:
    """out (T, hidden) + sum over k of scores[t, k] * expert_out[order[t * K + k]]."""
    picked = expert_out.astype(np.float64)[order].reshape(*scores.shape, -1)
    return out.astype(np.float64) + np.einsum("tk,tkh->th", scores.astype(np.float64), picked)
