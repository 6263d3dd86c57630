"""Weights as the quantized kernels take them, and what they stand for in float64."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cython_kernels
from cython_kernels import reference
from kernels.cases import EPS32, Arrays

F64 = NDArray[np.float64]

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = ("f32", "f16", "bf16")  # in the order of enum kandiga_dtype
ARITHMETIC_NAMES = ("exact", "int16", "int8")  # in the order of enum kandiga_arithmetic

# A product sum may be off by this many float32 roundings of the sum of its terms' sizes, where a
# quantized weight is two terms, scale * code and bias. Rows are summed in groups and vector lanes,
# so a column sees few additions; the worst seen, in scalar code at 128 columns a group, is 5.
SUM_ROUNDINGS = 12 * EPS32


def store(values: NDArray[np.floating], dtype: str) -> NDArray[np.generic]:
    """Values in the given type; bfloat16, cut off rather than rounded, as uint16."""
    if dtype == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"f32": np.float32, "f16": np.float16}[dtype])


@dataclass(frozen=True)
class Weight:
    """A matrix as the kernels take it, with its values and the sizes of the terms behind them."""

    parts: Arrays  # weight, scales, biases, bias
    bits: int
    group_size: int
    dtype: str
    bias_dtype: str
    values: F64  # (out_features, in_features)
    sizes: F64  # (out_features, in_features): |scale| * code + |bias|
    bias: F64  # (out_features,)
    arithmetic: str = "exact"

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape

    def params(self, prefix: str) -> dict[str, float]:
        numbers = {
            "out_features": self.shape[0],
            "in_features": self.shape[1],
            "bits": self.bits,
            "group_size": self.group_size,
            "dtype": DTYPES.index(self.dtype),
            "bias_dtype": DTYPES.index(self.bias_dtype),
            "arithmetic": ARITHMETIC_NAMES.index(self.arithmetic),
        }
        return {f"{prefix}.{name}": value for name, value in numbers.items()}

    def matmul(self, x: NDArray[np.floating]) -> tuple[F64, F64]:
        """x W^T + bias, and how far a float32 kernel may be from it.

        Integer arithmetic is float32 arithmetic on a rounded x, and a sum of integers has no error.
        """
        rounded = reference.rounded(x, self.group_size, self.arithmetic)
        sizes = np.abs(rounded) @ self.sizes.T + np.abs(self.bias)
        return reference.matmul(self.values, rounded, self.bias), sizes * SUM_ROUNDINGS

    def rounding_doubt(self, x: F64, allowed: F64) -> F64:
        """How far apart two x that differ by no more than `allowed` may be after rounding."""
        if self.arithmetic == "exact":
            return allowed
        groups = (len(x), x.shape[1] // self.group_size, self.group_size)
        _, sizes = reference.round_to_steps(x, self.group_size, self.arithmetic)
        sizes = np.maximum(sizes.astype(np.float64), np.finfo(np.float32).tiny)[..., None]
        steps = x.reshape(groups) / sizes
        largest = np.abs(steps).max(axis=2, keepdims=True)
        # The step size is off by as much as the largest x may be, and every x in steps with it.
        size_error = allowed.reshape(groups).max(axis=2, keepdims=True) / sizes / (largest + 1e-30)
        size_error += 4 * EPS32
        steps_error = allowed.reshape(groups) / sizes + np.abs(steps) * size_error
        moved = np.floor(steps_error + 0.5 + np.abs(steps - np.rint(steps)))
        return ((moved + np.abs(steps) * size_error) * sizes).reshape(x.shape)


def quantized(
    rng: np.random.Generator,
    out_features: int,
    in_features: int,
    *,
    bits: int,
    group_size: int,
    dtype: str,
    bias_dtype: str | None = None,
    codes: NDArray[np.integer] | None = None,
    scale: float = 0.02,
    arithmetic: str = "exact",
) -> Weight:
    """Random affine weight with entries of either sign of about `scale` times 2^bits / 4."""
    if codes is None:
        codes = rng.integers(0, 2**bits, (out_features, in_features))
    groups = (out_features, in_features // group_size)
    scales = store(scale * rng.uniform(0.5, 1.5, groups) * rng.choice([-1, 1], groups), dtype)
    offset = reference.to_float64(scales, dtype) * -(2 ** (bits - 1))
    biases = store(offset * rng.uniform(0.8, 1.2, groups), dtype)
    weight = reference.pack_codes(codes, bits)
    how: dict[str, Any] = {"bits": bits, "group_size": group_size, "scale_dtype": dtype}
    magnitudes = [store(np.abs(reference.to_float64(a, dtype)), dtype) for a in (scales, biases)]
    return _with_bias(
        rng,
        Weight(
            parts={"weight": weight, "scales": scales, "biases": biases},
            bits=bits,
            group_size=group_size,
            dtype=dtype,
            bias_dtype="f32",
            values=reference.dequantize(weight, scales, biases, **how),
            sizes=reference.dequantize(weight, *magnitudes, **how),
            bias=np.zeros(out_features),
            arithmetic=arithmetic,
        ),
        bias_dtype,
    )


def plain(
    rng: np.random.Generator,
    out_features: int,
    in_features: int,
    dtype: str,
    bias_dtype: str | None = None,
) -> Weight:
    """Random unquantized weight."""
    weight = store(rng.standard_normal((out_features, in_features)), dtype)
    values = reference.to_float64(weight, dtype)
    return _with_bias(
        rng,
        Weight(
            parts={"weight": weight},
            bits=0,
            group_size=0,
            dtype=dtype,
            bias_dtype="f32",
            values=values,
            sizes=np.abs(values),
            bias=np.zeros(out_features),
        ),
        bias_dtype,
    )


def _with_bias(rng: np.random.Generator, w: Weight, dtype: str | None) -> Weight:
    if dtype is None:
        return w
    bias = store(rng.standard_normal(w.shape[0]), dtype)
    values = reference.to_float64(bias, dtype)
    return replace(w, parts={**w.parts, "bias": bias}, bias=values, bias_dtype=dtype)


def as_matrix(w: Weight, parts: Mapping[str, NDArray[np.generic]]) -> cython_kernels.Matrix:
    """The kernels' matrix over `parts`, which lie where the test wants them."""
    out_features, in_features = w.shape
    bias = parts.get("bias")
    shape = {"out_features": out_features, "in_features": in_features}
    if w.bits == 0:
        return cython_kernels.Matrix.dense(parts["weight"], dtype=w.dtype, bias=bias, **shape)
    return cython_kernels.Matrix.affine(
        parts["weight"],
        parts["scales"],
        parts["biases"],
        bits=w.bits,
        group_size=w.group_size,
        scale_dtype=w.dtype,
        bias=bias,
        arithmetic=w.arithmetic,
        **shape,
    )
