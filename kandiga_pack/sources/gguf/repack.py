"""GGUF's 32-weight blocks as MLX affine groups of 32: the same codes, the same scales.

A legacy GGUF block stores one f16 scale `d`, perhaps one f16 minimum `m`, and 32 codes. MLX
computes `scale * code + bias` with unsigned codes, so

    Q4_0  d (q - 8)      bits 4, bias   -8 d        Q4_1  d q + m   bits 4, bias m
    Q5_0  d (q - 16)     bits 5, bias  -16 d        Q5_1  d q + m   bits 5, bias m
    Q8_0  d i, i signed  bits 8, bias -128 d, code i + 128

No code is rounded and none moves to another group. A bias is `d` times a power of two: exact in f16
unless it leaves f16's range, which is refused (see `_bias`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from kandiga_pack.errors import PackError

GROUP_SIZE = 32


@dataclass(frozen=True)
class AffineKind:
    """How a GGUF block type reads as affine codes."""

    bits: int
    has_minimum: bool
    zero_code: int  # the code that stands for 0 where there is no minimum


AFFINE_KINDS = {
    GGMLQuantizationType.Q4_0: AffineKind(bits=4, has_minimum=False, zero_code=8),
    GGMLQuantizationType.Q4_1: AffineKind(bits=4, has_minimum=True, zero_code=0),
    GGMLQuantizationType.Q5_0: AffineKind(bits=5, has_minimum=False, zero_code=16),
    GGMLQuantizationType.Q5_1: AffineKind(bits=5, has_minimum=True, zero_code=0),
    GGMLQuantizationType.Q8_0: AffineKind(bits=8, has_minimum=False, zero_code=128),
}

FLOAT_KINDS: dict[GGMLQuantizationType, tuple[str, np.dtype[Any]]] = {
    GGMLQuantizationType.F32: ("f32", np.dtype("<f4")),
    GGMLQuantizationType.F16: ("f16", np.dtype("<f2")),
    GGMLQuantizationType.BF16: ("bf16", np.dtype("<u2")),
}

SUPPORTED_TYPES = tuple(kind.name for kind in (*AFFINE_KINDS, *FLOAT_KINDS))


@dataclass(frozen=True)
class AffineRows:
    """Quantized rows in MLX's layout.

    Attributes:
        weight: (rows, columns * bits / 32) uint32, codes LSB first.
        scales, biases: (rows, columns / 32) float16.
    """

    weight: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.float16]
    biases: npt.NDArray[np.float16]


def repack_rows(
    raw: npt.NDArray[np.uint8],
    kind: GGMLQuantizationType,
    num_columns: int,
    *,
    tensor_name: str,
) -> AffineRows:
    """Return rows of `num_columns` weights, stored as `raw` (rows, bytes) uint8, as affine codes.

    Raises:
        PackError: a scale is not finite, or a bias does not fit f16.
    """
    affine = AFFINE_KINDS[kind]
    block_bytes = GGML_QUANT_SIZES[kind][1]
    num_groups = num_columns // GROUP_SIZE
    blocks = raw.reshape(-1, num_groups, block_bytes)
    header_bytes = 4 if affine.has_minimum else 2
    header = np.ascontiguousarray(blocks[..., :header_bytes]).view("<f2")
    scales = np.ascontiguousarray(header[..., 0])
    if affine.has_minimum:
        biases = np.ascontiguousarray(header[..., 1])
    else:
        biases = _bias(scales, affine.zero_code)
    _check_finite(scales, biases, kind, tensor_name)
    codes = _packed_codes(blocks[..., header_bytes:], affine.bits)
    weight = codes.reshape(blocks.shape[0], -1).view("<u4")
    return AffineRows(weight, scales, biases)


def _bias(scales: npt.NDArray[np.float16], zero_code: int) -> npt.NDArray[np.float16]:
    # Overflow becomes infinity, which _check_finite reports.
    with np.errstate(over="ignore", invalid="ignore"):
        return scales * np.float16(-zero_code)


def _check_finite(
    scales: npt.NDArray[np.float16],
    biases: npt.NDArray[np.float16],
    kind: GGMLQuantizationType,
    tensor_name: str,
) -> None:
    """Refuse groups that f16 scales cannot carry.

    Going on with f32 scales would be possible, but the dtype must be known before the first block
    is packed, so every conversion would read the whole file twice to look for weights beyond
    +-65504, which f16 checkpoints cannot hold and f16 engines cannot run.
    """
    bad = ~(np.isfinite(scales) & np.isfinite(biases))
    if not bad.any():
        return
    row, group = (int(index) for index in np.argwhere(bad)[0])
    raise PackError(
        f"tensor {tensor_name} ({kind.name}): row {row} group {group} has scale "
        f"{scales[row, group]} and bias {biases[row, group]}, both must be finite in f16. "
        "The file is damaged, or its weights are beyond f16: get it again, or one in F32"
    )


def _packed_codes(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return (rows, groups, 4 * bits) uint8: 32 codes a group, LSB first, as MLX has them."""
    if bits == 8:
        return codes ^ np.uint8(0x80)
    if bits == 4:
        return _ordered_nibbles(codes)
    high_bits, nibbles = codes[..., :4], codes[..., 4:]
    return _five_bit_codes(_ordered_nibbles(nibbles), np.ascontiguousarray(high_bits))


def _ordered_nibbles(stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return (..., 16) uint8 with weights 2i, 2i+1 in byte i; GGUF keeps i and i+16 in byte i."""
    even, odd = stored[..., 0::2], stored[..., 1::2]
    ordered = np.empty(stored.shape, np.uint8)
    ordered[..., :8] = (even & 0x0F) | (odd << 4)
    ordered[..., 8:] = (even >> 4) | (odd & 0xF0)
    return ordered


def _repeated(mask: int, offsets: tuple[int, ...]) -> np.uint64:
    return np.uint64(sum(mask << offset for offset in offsets))


# (bits that stay, bits that move, by how much): fields of four nibbles, of two, of one.
_SPREAD_STEPS = (
    (_repeated(0xFFFF, (0,)), _repeated(0xFFFF, (16,)), np.uint64(4)),
    (_repeated(0xFF, (0, 20)), _repeated(0xFF, (8, 28)), np.uint64(2)),
    (_repeated(0xF, (0, 10, 20, 30)), _repeated(0xF, (4, 14, 24, 34)), np.uint64(1)),
)
# Fifth bits of eight codes, 5 bits apart, by the byte that GGUF keeps them in.
_FIFTH_BITS = np.array(
    [sum((byte >> i & 1) << (5 * i + 4) for i in range(8)) for byte in range(256)], np.uint64
)


def _five_bit_codes(
    nibbles: npt.NDArray[np.uint8], high_bits: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Return (..., 20) uint8: eight 5-bit codes in five bytes, from nibbles and their fifth bits.

    Args:
        nibbles: (..., 16) uint8, weights 2i and 2i+1 in byte i.
        high_bits: (..., 4) uint8, bit i of byte j belongs to weight 8 j + i.
    """
    word = np.ascontiguousarray(nibbles).view("<u4").astype(np.uint64)
    # Spread eight nibbles from 4 bits apart to 5 by halves: 6 operations on a word, not 8 codes.
    for keep, move, shift in _SPREAD_STEPS:
        word = (word & keep) | ((word & move) << shift)
    word |= _FIFTH_BITS[high_bits]
    packed = word.astype("<u8", copy=False).view(np.uint8)
    packed = packed.reshape(*word.shape, 8)[..., :5]
    return np.ascontiguousarray(packed).reshape(*nibbles.shape[:-1], 20)
