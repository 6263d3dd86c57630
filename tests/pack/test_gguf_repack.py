"""GGUF blocks and MLX groups hold the same codes, scales and values."""

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf.repack import AFFINE_KINDS, AffineRows, repack_rows

KINDS = list(AFFINE_KINDS)


def stored_codes(raw: np.ndarray, kind: Kind) -> np.ndarray:
    """Unsigned codes (rows, columns), block by block and weight by weight, from ggml's structs."""
    affine = AFFINE_KINDS[kind]
    block_bytes = GGML_QUANT_SIZES[kind][1]
    codes = []
    for block in raw.reshape(-1, block_bytes):
        body = block[4 if affine.has_minimum else 2 :]
        if kind == Kind.Q8_0:
            codes += [int(np.int8(byte)) + 128 for byte in body]
            continue
        high = int.from_bytes(body[:4].tobytes(), "little") if affine.bits == 5 else 0
        nibbles = body[4:] if affine.bits == 5 else body
        low = [int(byte) & 15 for byte in nibbles] + [int(byte) >> 4 for byte in nibbles]
        codes += [nibble | (high >> i & 1) << 4 for i, nibble in enumerate(low)]
    return np.array(codes).reshape(len(raw), -1)


def mlx_codes(rows: AffineRows, bits: int) -> np.ndarray:
    """The codes as mlx unpacks them: scale 1 and bias 0 give the code itself."""
    ones = mx.ones(rows.scales.shape)
    unpacked = mx.dequantize(
        mx.array(rows.weight), ones, mx.zeros_like(ones), group_size=32, bits=bits
    )
    return np.array(unpacked).astype(np.int64)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [32, 96, 576])
def test_codes_are_equal_bit_for_bit(kind: Kind, columns: int) -> None:
    rng = np.random.default_rng(columns)
    raw = gguf.quants.quantize(rng.standard_normal((5, columns), np.float32), kind)
    rows = repack_rows(raw, kind, columns, tensor_name="t")
    np.testing.assert_array_equal(mlx_codes(rows, AFFINE_KINDS[kind].bits), stored_codes(raw, kind))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_code_and_awkward_scales(kind: Kind) -> None:
    """All byte values, with scales zero, subnormal, negative, tiny, and as large as is allowed."""
    affine = AFFINE_KINDS[kind]
    block_bytes = GGML_QUANT_SIZES[kind][1]
    smallest_subnormal, largest = np.float16(6e-8), np.float16(65504 / max(affine.zero_code, 1))
    scales = np.array([0, smallest_subnormal, -0.37, 6.1e-5, largest, -largest], np.float16)
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (len(scales), 64, block_bytes), np.uint8)
    raw[..., :2] = scales.view(np.uint8).reshape(-1, 1, 2)
    if affine.has_minimum:
        raw[..., 2:4] = scales[::-1].copy().view(np.uint8).reshape(-1, 1, 2)
    raw = raw.reshape(len(scales), -1)
    rows = repack_rows(raw, kind, 64 * 32, tensor_name="t")
    np.testing.assert_array_equal(mlx_codes(rows, affine.bits), stored_codes(raw, kind))
    np.testing.assert_array_equal(rows.scales, np.repeat(scales[:, None], 64, axis=1))
    scales32, biases32 = (mx.array(x).astype(mx.float32) for x in (rows.scales, rows.biases))
    values = mx.dequantize(
        mx.array(rows.weight), scales32, biases32, group_size=32, bits=affine.bits
    )
    # float32 holds the exact value of every weight here; == treats 0 and -0 alike.
    np.testing.assert_array_equal(np.array(values), gguf.quants.dequantize(raw, kind))


@pytest.mark.parametrize(
    ("kind", "scale"),
    [(Kind.Q4_0, 8200.0), (Kind.Q8_0, -512.0), (Kind.Q4_1, np.inf), (Kind.Q5_0, np.nan)],
    ids=["Q4_0 bias overflows", "Q8_0 bias overflows", "infinite scale", "NaN scale"],
)
def test_a_scale_that_f16_cannot_carry_is_named(kind: Kind, scale: float) -> None:
    block_bytes = GGML_QUANT_SIZES[kind][1]
    raw = np.zeros((3, 2, block_bytes), np.uint8)
    raw[2, 1, :2] = np.array([scale], np.float16).view(np.uint8)
    with pytest.raises(
        PackError, match=rf"tensor blk\.0\.x \({kind.name}\): row 2 group 1 has scale"
    ):
        repack_rows(raw.reshape(3, -1), kind, 64, tensor_name="blk.0.x")
