"""Element types: one table of facts, and the few questions asked of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from formats.errors import KexpError


@dataclass(frozen=True)
class Dtype:
    """An element type.

    name: lower-case name used everywhere in this project ("bf16").
    code: number in the layout section; never reused.
    bits: width of one element.
    numpy: little-endian numpy dtype that carries the bits, None if elements share bytes.
    """

    name: str
    code: int
    bits: int
    numpy: str | None


# numpy has no bfloat16 and no 8-bit floats: their bits travel in the unsigned type of their width.
TABLE = (
    Dtype("bool", 1, 8, "|b1"),
    Dtype("u8", 2, 8, "|u1"),
    Dtype("i8", 3, 8, "|i1"),
    Dtype("u16", 4, 16, "<u2"),
    Dtype("i16", 5, 16, "<i2"),
    Dtype("u32", 6, 32, "<u4"),
    Dtype("i32", 7, 32, "<i4"),
    Dtype("u64", 8, 64, "<u8"),
    Dtype("i64", 9, 64, "<i8"),
    Dtype("f16", 10, 16, "<f2"),
    Dtype("bf16", 11, 16, "<u2"),
    Dtype("f32", 12, 32, "<f4"),
    Dtype("f64", 13, 64, "<f8"),
    Dtype("c64", 14, 64, "<c8"),
    Dtype("f8_e4m3", 15, 8, "|u1"),
    Dtype("f8_e5m2", 16, 8, "|u1"),
    Dtype("f8_e8m0", 17, 8, "|u1"),
    Dtype("f8_e4m3fnuz", 18, 8, "|u1"),
    Dtype("f8_e5m2fnuz", 19, 8, "|u1"),
    Dtype("f4", 20, 4, None),
    Dtype("f6_e2m3", 21, 6, None),
    Dtype("f6_e3m2", 22, 6, None),
)
_BY_NAME = {dtype.name: dtype for dtype in TABLE}
_BY_CODE = {dtype.code: dtype for dtype in TABLE}


def lookup(name: str) -> Dtype:
    """Return the Dtype called `name`; KexpError E_DTYPE if there is none."""
    found = _BY_NAME.get(name)
    if found is None:
        raise KexpError("E_DTYPE", f"dtype {name!r} is unknown; known are {', '.join(_BY_NAME)}")
    return found


def from_code(code: int) -> str:
    """Return the name of the dtype with this number in a layout section; KexpError E_DTYPE."""
    found = _BY_CODE.get(code)
    if found is None:
        raise KexpError("E_DTYPE", f"dtype code {code} is unknown; known are 1..{len(TABLE)}")
    return found.name


def itemsize(name: str) -> int:
    """Return the bytes of one element; KexpError E_DTYPE for the types narrower than a byte."""
    dtype = lookup(name)
    if dtype.bits % 8:
        raise KexpError("E_DTYPE", f"an element of {name} is {dtype.bits} bits, not whole bytes")
    return dtype.bits // 8


def num_bytes(name: str, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor; KexpError E_DTYPE where they would not be whole."""
    bits = lookup(name).bits * math.prod(shape)
    if bits % 8:
        raise KexpError("E_DTYPE", f"{name} {tuple(shape)} is {bits} bits, not whole bytes")
    return bits // 8


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """Return the little-endian numpy dtype carrying `name` (bf16 as uint16); KexpError E_DTYPE."""
    carrier = lookup(name).numpy
    if carrier is None:
        raise KexpError("E_DTYPE", f"{name} packs several elements a byte: numpy cannot carry it")
    return np.dtype(carrier)


def from_safetensors(name: str) -> str:
    """Return our name of a safetensors dtype ("BF16" -> "bf16"); KexpError E_DTYPE if unknown."""
    if not name.isupper():
        raise KexpError("E_DTYPE", f"safetensors dtype {name!r} is unknown")
    return lookup(name.lower()).name


def to_safetensors(name: str) -> str:
    """Return the safetensors name of a dtype ("bf16" -> "BF16"); KexpError E_DTYPE if unknown."""
    return lookup(name).name.upper()
