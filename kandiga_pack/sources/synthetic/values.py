"""Which numbers a made-up tensor holds.

Every matrix W (out, in) has entries of mean 0 and variance 1/in, times the square of a gain, so
that what comes in with variance 1 goes out with variance 1; residual branches are turned down so
that the token read stays visible through all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats import dtypes
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.synthetic.stream import POOL_BYTES, Words, random_pool, wrapped

# Routers are louder than other matrices: the experts chosen differ clearly from those left out, and
# engines that round otherwise still choose the same.
_ROUTER_GAIN = 4.0
# The scales of a published checkpoint differ from group to group, too.
_SCALE_SPREAD = 0.25
# Modules whose output is added to the residual stream.
_BRANCH_ENDS = ("o_proj", "out_proj", "down_proj", "fc2", "w2", "dense", "wo")

# Parameters of state-space layers, whose defaults would make the state forget everything at once:
# the decay of a step is exp(-exp(A_log) * softplus(dt_bias + ...)).
_STATE_RANGES = {"A_log": (0.0, 2.75), "dt_bias": (-7.0, -2.0)}


@dataclass(frozen=True)
class Codes:
    """Uniform random bits."""


@dataclass(frozen=True)
class Floats:
    """Uniform numbers from `low` to `high`, rounded to `dtype`, then times `factor` and again.

    Scales and biases of a matrix differ in `factor` only, so that they stay each other's.
    """

    dtype: str
    low: float
    high: float
    factor: float = 1.0


@dataclass(frozen=True)
class Matrix:
    """What the scales and biases of a quantized matrix follow from."""

    in_features: int
    bits: int


def values_of(info: TensorInfo, matrix: Matrix | None, num_layers: int) -> Codes | Floats:
    """Say what a tensor holds.

    Args:
        info: the tensor.
        matrix: the quantized matrix it is a part of, None for one that is not quantized.
        num_layers: decoder layers of the model.
    """
    module, _, role = info.name.rpartition(".")
    if matrix is not None and role == "weight":
        return Codes()
    if matrix is not None and role in ("scales", "biases"):
        return _scales(info, matrix, role, _std(module, matrix.in_features, num_layers))
    if role in _STATE_RANGES:
        return Floats(info.dtype, *_STATE_RANGES[role])
    if info.dtype not in ("f16", "bf16", "f32"):
        return Codes()
    if role == "weight" and len(info.shape) > 1:
        # A convolution's last axis but one is the kernel, and its last one is 1.
        in_features = math.prod(info.shape[1:]) if "conv" in module else info.shape[-1]
        return _around(info.dtype, 0.0, _std(module, in_features, num_layers))
    # What is left are vectors: norms, which multiply, and biases and the like, which add.
    return _around(info.dtype, 1.0, 0.1) if role == "weight" else _around(info.dtype, 0.0, 0.02)


def _std(module: str, in_features: int, num_layers: int) -> float:
    last = module.rpartition(".")[2]
    if "embed" in last or last == "wte":  # a row is looked up: nothing is summed
        return 1.0
    if last in ("gate", "router") or module.endswith(".gate.wg"):
        return _ROUTER_GAIN / math.sqrt(in_features)
    if last in _BRANCH_ENDS:
        return 1.0 / math.sqrt(2 * num_layers * in_features)
    return 1.0 / math.sqrt(in_features)


def _scales(info: TensorInfo, matrix: Matrix, role: str, std: float) -> Floats:
    """Return scales that give codes 0 .. 2^bits - 1 this spread, or the biases that centre them."""
    steps = (1 << matrix.bits) - 1
    # The variance of a uniform code is ((steps + 1)^2 - 1) / 12.
    scale = std / math.sqrt(steps * (steps + 2) / 12)
    factor = 1.0 if role == "scales" else -steps / 2
    return Floats(info.dtype, (1 - _SCALE_SPREAD) * scale, (1 + _SCALE_SPREAD) * scale, factor)


def _around(dtype: str, mean: float, std: float) -> Floats:
    reach = math.sqrt(3.0) * std  # of a uniform distribution
    return Floats(dtype, mean - reach, mean + reach)


def pool_of(values: Codes | Floats, seed: int) -> Words:
    """Return the pool that `stream.fill` takes the tensor's bytes from."""
    return random_pool(seed) if isinstance(values, Codes) else _float_pool(values, seed)


@lru_cache(maxsize=64)
def _float_pool(values: Floats, seed: int) -> Words:
    """Return as many numbers as fill a pool.

    Only +, * and rounding are used: the same bits on every machine.
    """
    itemsize = dtypes.itemsize(values.dtype)
    unit = random_pool(seed)[: POOL_BYTES // 8].view(f"<u{itemsize}") * 2.0 ** (-8 * itemsize)
    numbers = values.low + (values.high - values.low) * unit
    stored = _rounded(numbers, values.dtype)
    if values.factor != 1.0:
        stored = _rounded(_as_float64(stored, values.dtype) * values.factor, values.dtype)
    return wrapped(stored.view("<u8"))


def _rounded(numbers: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Round to a dtype as it is stored; bf16 as uint16, ties to even."""
    if dtype != "bf16":
        return numbers.astype(dtypes.numpy_dtype(dtype))
    bits = numbers.astype("<f4").view("<u4")
    upper: NDArray[Any] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return upper.astype("<u2")


def _as_float64(stored: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    if dtype == "bf16":
        return (stored.astype("<u4") << 16).view("<f4").astype(np.float64)
    return stored.astype(np.float64)
