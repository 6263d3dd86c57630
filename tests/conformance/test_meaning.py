"""What section 11 says a code stands for is what MLX computes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
ROWS, COLS = 5, 128
# mlx rounds products to float32; float64 here.
FLOAT32_ROUNDINGS = 2**-22


def e4m3(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent = (codes >> 3 & 15).astype(np.int64)
    mantissa = (codes & 7) / 8
    size = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    return sign * size


def unpacked(weight: mx.array, bits: int) -> NDArray[np.uint8]:
    """Codes (ROWS, COLS): code i is bits i*bits .. i*bits+bits-1 of the row's bytes."""
    rows = np.array(weight).view(np.uint8)
    stream = [int.from_bytes(row.tobytes(), "little") for row in rows]
    codes = [[row >> bits * i & (1 << bits) - 1 for i in range(COLS)] for row in stream]
    return np.array(codes, dtype=np.uint8)


def check(found: mx.array, wanted: NDArray[np.float64]) -> None:
    atol = FLOAT32_ROUNDINGS * np.abs(wanted).max()
    np.testing.assert_allclose(np.array(found), wanted, rtol=0, atol=atol)


@pytest.fixture
def matrix() -> mx.array:
    return mx.array(np.random.default_rng(0).standard_normal((ROWS, COLS)).astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_affine(matrix: mx.array, bits: int) -> None:
    weight, scales, biases = mx.quantize(matrix, group_size=64, bits=bits)
    spread = [np.repeat(np.array(each, np.float64), 64, axis=1) for each in (scales, biases)]
    wanted = unpacked(weight, bits) * spread[0] + spread[1]
    check(mx.dequantize(weight, scales, biases, group_size=64, bits=bits), wanted)


@pytest.mark.parametrize(
    ("mode", "bits", "group_size", "global_scale"),
    [
        ("mxfp4", 4, 32, None),
        ("mxfp8", 8, 32, None),
        ("nvfp4", 4, 16, None),
        ("nvfp4", 4, 16, 3.5),
    ],
)
def test_floating_point_modes(
    matrix: mx.array, mode: str, bits: int, group_size: int, global_scale: float | None
) -> None:
    options = {"group_size": group_size, "bits": bits, "mode": mode}
    if global_scale is not None:
        options["global_scale"] = mx.array(global_scale, dtype=mx.float32)
    weight, scales = mx.quantize(matrix, **options)[:2]
    codes = unpacked(weight, bits)
    groups = np.array(scales)
    if mode == "nvfp4":
        sizes = e4m3(groups) * (1 if global_scale is None else global_scale / 2688)
    else:
        sizes = 2.0 ** (groups.astype(np.int64) - 127)
    numbers = E2M1[codes] if bits == 4 else e4m3(codes)
    found = mx.dequantize(weight, scales, **options, dtype=mx.float32)
    check(found, numbers * np.repeat(sizes, group_size, axis=1))
