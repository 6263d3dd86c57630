"""The byte order is MLX's: codes packed by mx.quantize come out as mx.dequantize gives them."""

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

import cython_kernels
from cython_kernels import reference

FORMATS = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]


def as_numpy(array: mx.array) -> NDArray[np.generic]:
    """bfloat16 as uint16."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_dequantized_rows_are_those_of_mlx(bits: int, group_size: int, dtype: str) -> None:
    mx_dtype = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}[dtype]
    rng = np.random.default_rng(bits)
    w = mx.array(rng.standard_normal((9, 3 * group_size)).astype(np.float32)).astype(mx_dtype)
    quantized = mx.quantize(w, group_size=group_size, bits=bits)
    codes, scales, biases = map(as_numpy, quantized)
    # MLX would round the weight to the scales' type; we do not.
    wide = (part.astype(mx.float32) for part in quantized[1:])
    wanted = np.array(mx.dequantize(quantized[0], *wide, group_size=group_size, bits=bits))

    how = {"bits": bits, "group_size": group_size, "scale_dtype": dtype}
    matrix = cython_kernels.Matrix.affine(
        codes, scales, biases, out_features=9, in_features=3 * group_size, **how
    )
    rows = np.empty(wanted.shape, dtype=np.float32)
    cython_kernels.embed_rows(matrix, np.arange(9, dtype=np.int32), rows)
    # One or two roundings of entries below 5, depending on a fused multiply-add.
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=5 * 2**-23)
    exact = reference.dequantize(codes, scales, biases, **how)
    np.testing.assert_allclose(rows, exact, rtol=0, atol=5 * 2**-23)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_pack_as_mlx_packs_them(bits: int) -> None:
    rng = np.random.default_rng(bits)
    w = mx.array(rng.standard_normal((5, 128)).astype(np.float32))
    codes = as_numpy(mx.quantize(w, group_size=32, bits=bits)[0])
    assert (reference.pack_codes(reference.unpack_codes(codes, bits), bits) == codes).all()


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_matmul_is_that_of_mlx(bits: int, group_size: int, tokens: int) -> None:
    rng = np.random.default_rng(bits)
    w = mx.array(rng.standard_normal((24, 512)).astype(np.float32))
    x = rng.standard_normal((tokens, 512)).astype(np.float32)
    how = {"group_size": group_size, "bits": bits}
    quantized = mx.quantize(w, **how)
    wanted = np.array(mx.quantized_matmul(mx.array(x), *quantized, transpose=True, **how))
    matrix = cython_kernels.Matrix.affine(
        *map(as_numpy, quantized), out_features=24, in_features=512, scale_dtype="f32", **how
    )
    out = np.empty((tokens, 24), dtype=np.float32)
    cython_kernels.matmul(matrix, x, out)
    # Two float32 sums of 512 products of size 1, in different orders.
    np.testing.assert_allclose(out, wanted, rtol=0, atol=3e-4)
