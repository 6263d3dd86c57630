"""The KV cache code in mlx operations: rotation, scalar codes, packing. Shapes (..., T, D).

The code of the kernels without noise shaping, which goes coordinate by coordinate; bytes lie
otherwise, since nothing but mlx reads them. specs/turboquant.md says where each piece comes from.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from cython_kernels.reference.turboquant import (
    BLOCK_TOKENS,
    KEY_SEED,
    LEVEL_UNIT,
    MAX_LEVEL,
    VALUE_SEED,
    level_table,
    lloyd_max,
    rotation_signs,
)


@dataclass(frozen=True)
class Code:
    """How keys, or values, of one head_dim are coded. Keys are centred."""

    bits: int
    head_dim: int
    is_keys: bool

    @property
    def packed_bytes(self) -> int:
        """Return the bytes of one coded vector, its scale and mean not counted."""
        return self._padded_dim * self.bits // 8

    @property
    def _padded_dim(self) -> int:
        return -(-self.head_dim // 8) * 8

    def encode(self, rows: Any) -> tuple[Any, Any, Any]:
        """Code rows (B, H, n * 128, D) of n whole blocks.

        Returns packed codes (B, H, n * 128, packed_bytes) uint8, scales (B, H, n * 128) float16 and
        means (B, H, n, D) float16, which are 0 for values.
        """
        batch, heads, tokens, dim = rows.shape
        blocks = rows.astype(mx.float32).reshape(batch, heads, -1, BLOCK_TOKENS, dim)
        means = blocks.mean(axis=-2) if self.is_keys else mx.zeros_like(blocks[..., 0, :])
        means = means.astype(mx.float16)
        y = self.rotate(blocks - means.astype(mx.float32)[..., None, :])
        codes = self._quantize(y)
        levels = self._levels(codes)
        scales = _ratio((y * y).sum(-1), (y * levels).sum(-1))
        packed = self._pack(codes).reshape(batch, heads, tokens, self.packed_bytes)
        return packed, scales.reshape(batch, heads, tokens).astype(mx.float16), means

    def levels(self, packed: Any) -> Any:
        """Return what codes stand for before their scales: (..., T, D) float32, rotated."""
        return self._levels(self._unpack(packed))

    def decode(self, packed: Any, scales: Any, means: Any) -> Any:
        """Return the rows (B, H, n * 128, D) float32 that `encode` was given, as well as kept."""
        rows = self.unrotate(self.levels(packed) * scales.astype(mx.float32)[..., None])
        return rows + mx.repeat(means.astype(mx.float32), BLOCK_TOKENS, axis=2)

    def rotate(self, x: Any) -> Any:
        """Rotate rows (..., D)."""
        for signs, piece in _stages(self.head_dim, self.is_keys):
            x = _transform(x * signs, piece)
        return x

    def unrotate(self, y: Any) -> Any:
        """Undo `rotate`."""
        for signs, piece in reversed(_stages(self.head_dim, self.is_keys)):
            y = _transform(y, piece) * signs
        return y

    def _quantize(self, y: Any) -> Any:
        """Return codes uint8 of rotated rows; 8 bits are levels as two's complement."""
        if self.bits == 8:
            return mx.round(y * _ratio(MAX_LEVEL, mx.abs(y).max(-1, keepdims=True))).astype(mx.int8)
        z = y * _ratio(1.0, mx.sqrt((y * y).mean(-1, keepdims=True)))
        centroids = lloyd_max(self.bits)
        borders = ((centroids[:-1] + centroids[1:]) / 2).tolist()
        if self.bits == 3:
            sign = (z < 0).astype(mx.uint8) * 4
            return _count_below(mx.abs(z), borders[4:]) + sign
        return _count_below(z, borders)

    def _levels(self, codes: Any) -> Any:
        if self.bits == 8:
            return codes.astype(mx.float32) * LEVEL_UNIT
        return _level_array(self.bits)[codes.astype(mx.uint32)]

    def _pack(self, codes: Any) -> Any:
        if self.bits == 8:
            return _padded(codes, self._padded_dim).view(mx.uint8)
        codes = _padded(codes, self._padded_dim)
        if self.bits == 3:
            return mx.concatenate([_pack_plane(codes & 3, 2), _pack_plane(codes >> 2, 1)], axis=-1)
        return _pack_plane(codes, self.bits)

    def _unpack(self, packed: Any) -> Any:
        if self.bits == 8:
            return packed.view(mx.int8)[..., : self.head_dim]
        if self.bits == 3:
            low_bytes = self._padded_dim // 4
            low = _unpack_plane(packed[..., :low_bytes], 2)
            codes = low | _unpack_plane(packed[..., low_bytes:], 1) << 2
        else:
            codes = _unpack_plane(packed, self.bits)
        return codes[..., : self.head_dim]


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Return the quotient, and 0 where the denominator is."""
    is_zero = denominator == 0
    return mx.where(is_zero, 0.0, numerator / mx.where(is_zero, 1.0, denominator))


def _count_below(z: Any, borders: list[float]) -> Any:
    count = mx.zeros(z.shape, mx.uint8)
    for border in borders:
        count = count + (z > border).astype(mx.uint8)
    return count


def _padded(codes: Any, dim: int) -> Any:
    missing = dim - codes.shape[-1]
    return mx.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)]) if missing else codes


def _pack_plane(codes: Any, bits: int) -> Any:
    shifts = mx.arange(0, 8, bits, dtype=mx.uint8)
    parts = codes.reshape(*codes.shape[:-1], -1, 8 // bits) << shifts
    return parts.sum(axis=-1).astype(mx.uint8)


def _unpack_plane(packed: Any, bits: int) -> Any:
    shifts = mx.arange(0, 8, bits, dtype=mx.uint8)
    codes = (packed[..., None] >> shifts) & (2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def _transform(x: Any, piece: slice) -> Any:
    """Transform a power-of-two piece of the last axis, orthonormally."""
    changed = mx.hadamard_transform(x[..., piece])
    return mx.concatenate([x[..., : piece.start], changed, x[..., piece.stop :]], axis=-1)


@functools.cache
def _level_array(bits: int) -> Any:
    return mx.array(level_table(bits).astype(np.float32) * np.float32(LEVEL_UNIT))


@functools.cache
def _stages(head_dim: int, is_keys: bool) -> list[tuple[Any, slice]]:
    """Return signs and transformed piece of each stage: leading, trailing, leading."""
    signs = rotation_signs(KEY_SEED if is_keys else VALUE_SEED, head_dim).astype(np.float32)
    length = 1 << (head_dim.bit_length() - 1)
    pieces = slice(0, length), slice(head_dim - length, head_dim), slice(0, length)
    return [(mx.array(s), piece) for s, piece in zip(signs, pieces, strict=False)]
