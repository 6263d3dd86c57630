"""Layout classes: where the parts of an expert lie inside its block (section LAYT).

A checkpoint has few distinct expert shapes, often one, so an expert's index entry holds only the
number of its layout.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from formats import dtypes
from formats.constants import (
    BLOCK_ALIGN,
    MAX_BLOCK_BYTES,
    MAX_LAYOUTS,
    MAX_PARTS,
    TENSOR_ALIGN,
    extent_fits,
    round_up,
)
from formats.errors import KexpError, in_file

# Numbers in the file. Their order is the order of the parts in a block, with the projections that
# are multiplied together side by side.
PROJECTIONS = {"gate": 1, "up": 2, "gate_up": 3, "down": 4, "fc1": 5, "fc2": 6}
ROLES = {"weight": 1, "scales": 2, "biases": 3, "bias": 4, "global_scale": 5}
MODES = {"none": 1, "affine": 2, "mxfp4": 3, "mxfp8": 4, "nvfp4": 5}

# mode -> (bits, group sizes) that MLX can compute with.
_QUANTIZATIONS = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}

# layout count, then reserved
_HEADER = struct.Struct("<I12x")
# id, part count, payload bytes, block bytes, reserved
_LAYOUT = struct.Struct("<HHIQQQ")
# projection, role, dtype, mode, ndim, bits, group size, rows, cols, offset, length
_PART = struct.Struct("<BBBBBBHIIQQ")

MAX_SECTION_BYTES = _HEADER.size + MAX_LAYOUTS * (_LAYOUT.size + MAX_PARTS * _PART.size)


@dataclass(frozen=True)
class Part:
    """One tensor of one expert.

    projection: "gate", "up", "gate_up", "down", "fc1" or "fc2".
    role: "weight", "scales", "biases", "bias" or "global_scale".
    dtype: name of the stored element type.
    shape: as stored, 0 to 2 dims; a quantized weight is (out, in * bits / 32) u32.
    mode, bits, group_size: the projection's quantization; "none", 0, 0 when there is none, and
        always so for a "bias".
    offset_bytes: from the start of the block.
    length_bytes: of the data, without padding.
    """

    projection: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    mode: str = "none"
    bits: int = 0
    group_size: int = 0
    offset_bytes: int = 0
    length_bytes: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """(projection, role): unique in a layout."""
        return self.projection, self.role

    def __str__(self) -> str:
        return f"{self.projection}.{self.role} {self.dtype} {self.shape}"


@dataclass(frozen=True)
class Layout:
    """The parts of an expert's block. Build one with `Layout.build`.

    Raises:
        KexpError: E_LAYOUT or E_DTYPE if the parts are not a block that a kernel could trust:
            canonical order, aligned tiling, lengths that follow from the shapes, and scales whose
            shape follows from the weight.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)

    @classmethod
    def build(cls, parts: Iterable[Part]) -> Layout:
        """Return the layout of `parts`, ordered and placed; their offsets and lengths are ignored.

        >>> layout = Layout.build([Part("up", "weight", "f16", (3, 5))])
        >>> layout.payload_bytes, layout.block_bytes
        (30, 16384)
        """
        placed: list[Part] = []
        offset = 0
        for part in sorted(parts, key=_order):
            length = dtypes.num_bytes(part.dtype, part.shape)
            placed.append(replace(part, offset_bytes=offset, length_bytes=length))
            offset = round_up(offset + length, TENSOR_ALIGN)
        return cls(tuple(placed))

    @property
    def payload_bytes(self) -> int:
        """Bytes from the block's start to the end of its last part."""
        return self.parts[-1].offset_bytes + self.parts[-1].length_bytes

    @property
    def block_bytes(self) -> int:
        """The payload rounded up to whole blocks."""
        return round_up(self.payload_bytes, BLOCK_ALIGN)

    def part(self, projection: str, role: str) -> Part | None:
        """Return that part, or None if the layout has none."""
        for part in self.parts:
            if part.key == (projection, role):
                return part
        return None


def _order(part: Part) -> tuple[int, int]:
    if part.projection not in PROJECTIONS:
        raise _wrong(f"projection {part.projection!r}, wanted one of {', '.join(PROJECTIONS)}")
    if part.role not in ROLES:
        raise _wrong(f"role {part.role!r}, wanted one of {', '.join(ROLES)}")
    return PROJECTIONS[part.projection], ROLES[part.role]


def _wrong(message: str) -> KexpError:
    return KexpError("E_LAYOUT", f"layout: {message}")


def _check_parts(parts: Sequence[Part]) -> None:
    if not 1 <= len(parts) <= MAX_PARTS:
        raise _wrong(f"{len(parts)} parts, wanted 1..{MAX_PARTS}")
    floor = 0
    previous = (0, 0)
    for part in parts:
        order = _order(part)
        if order <= previous:
            raise _wrong(f"part {part} is repeated or out of order")
        previous = order
        _check_part(part)
        wanted = round_up(floor, TENSOR_ALIGN)
        if part.offset_bytes != wanted:
            raise _wrong(f"part {part} begins at {part.offset_bytes}, wanted {wanted}")
        if not extent_fits(part.offset_bytes, part.length_bytes, MAX_BLOCK_BYTES):
            raise _wrong(f"part {part} leaves the largest block, {MAX_BLOCK_BYTES} bytes")
        floor = part.offset_bytes + part.length_bytes
    for projection in PROJECTIONS:
        by_role = {part.role: part for part in parts if part.projection == projection}
        if by_role:
            _check_projection(projection, by_role)


def _check_part(part: Part) -> None:
    if len(part.shape) > 2 or any(not 1 <= dim < 2**32 for dim in part.shape):
        raise _wrong(f"part {part} has an impossible shape")
    wanted = dtypes.num_bytes(part.dtype, part.shape)
    if part.length_bytes != wanted:
        raise _wrong(f"part {part} has {part.length_bytes} bytes, wanted {wanted}")
    if part.mode == "none":
        if part.bits or part.group_size:
            raise _wrong(
                f"part {part} is not quantized but has bits {part.bits}, "
                f"group_size {part.group_size}; wanted 0, 0"
            )
        return
    if part.mode not in _QUANTIZATIONS:
        raise _wrong(f"part {part} has mode {part.mode!r}, wanted one of {', '.join(MODES)}")
    bits, group_sizes = _QUANTIZATIONS[part.mode]
    if part.bits not in bits or part.group_size not in group_sizes:
        raise _wrong(
            f"part {part} is {part.mode} with bits {part.bits}, group_size {part.group_size}; "
            f"{part.mode} has bits {bits}, group sizes {group_sizes}"
        )


def _check_projection(projection: str, by_role: dict[str, Part]) -> None:
    weight = by_role.get("weight")
    if weight is None:
        raise _wrong(f"projection {projection} has no weight")
    if len(weight.shape) != 2:
        raise _wrong(f"part {weight} wanted as (out, in)")
    bias = by_role.get("bias")
    if bias is not None and (bias.mode != "none" or bias.shape != weight.shape[:1]):
        raise _wrong(f"part {bias} wanted unquantized, one for each of {weight.shape[0]} rows")
    quantized = {role: part for role, part in by_role.items() if role != "bias"}
    if weight.mode == "none":
        if len(quantized) > 1:
            raise _wrong(f"part {weight} is not quantized, yet has {', '.join(quantized)}")
        return
    for part in quantized.values():
        if (part.mode, part.bits, part.group_size) != (weight.mode, weight.bits, weight.group_size):
            raise _wrong(f"part {part} is not quantized as its weight is")
    _check_scales(weight, quantized)


def _check_scales(weight: Part, quantized: dict[str, Part]) -> None:
    if weight.dtype != "u32":
        raise _wrong(f"part {weight} is quantized, so its dtype wanted is u32")
    rows, words = weight.shape
    in_features, left_over = divmod(words * 32, weight.bits)
    if left_over or in_features % weight.group_size:
        raise _wrong(
            f"part {weight} does not hold whole groups of {weight.group_size} x {weight.bits} bits"
        )
    wanted = (rows, in_features // weight.group_size)
    names = ("scales", "biases") if weight.mode == "affine" else ("scales",)
    for name in ("scales", "biases"):
        part = quantized.get(name)
        if (part is not None) != (name in names):
            raise _wrong(f"part {weight} is {weight.mode}, which has {' and '.join(names)}")
        if part is None:
            continue
        if part.shape != wanted:
            raise _wrong(f"part {part} wanted with shape {wanted}, as its weight {weight} has")
        allowed = ("f16", "bf16", "f32") if weight.mode == "affine" else ("u8",)
        if part.dtype not in allowed:
            raise _wrong(f"part {part} wanted as {' or '.join(allowed)}")
    scale = quantized.get("global_scale")
    if scale is not None and (scale.dtype != "f32" or math.prod(scale.shape) != 1):
        raise _wrong(f"part {scale} wanted as one f32")


def pack_layouts(layouts: Sequence[Layout]) -> bytes:
    """Return the raw bytes of a LAYT section; a layout's id is its position."""
    pieces = [_HEADER.pack(len(layouts))]
    for number, layout in enumerate(layouts):
        pieces.append(
            _LAYOUT.pack(number, len(layout.parts), 0, layout.payload_bytes, layout.block_bytes, 0)
        )
        pieces.extend(_pack_part(part) for part in layout.parts)
    return b"".join(pieces)


def _pack_part(part: Part) -> bytes:
    rows, cols = (*part.shape, 1, 1)[:2]
    return _PART.pack(
        PROJECTIONS[part.projection],
        ROLES[part.role],
        dtypes.lookup(part.dtype).code,
        MODES[part.mode],
        len(part.shape),
        part.bits,
        part.group_size,
        rows,
        cols,
        part.offset_bytes,
        part.length_bytes,
    )


def parse_layouts(raw: bytes, *, file: PurePath) -> tuple[Layout, ...]:
    """Return the layouts in the raw bytes of a LAYT section; KexpError E_LAYOUT, E_DTYPE."""
    with in_file(file):
        return tuple(_iter_layouts(raw))


def _iter_layouts(raw: bytes) -> Iterator[Layout]:
    if len(raw) < _HEADER.size:
        raise _wrong(f"section of {len(raw)} bytes has no room for its header")
    (count,) = _HEADER.unpack_from(raw)
    if not 1 <= count <= MAX_LAYOUTS:
        raise _wrong(f"{count} layouts, wanted 1..{MAX_LAYOUTS}")
    if any(raw[4 : _HEADER.size]):
        raise _wrong("reserved bytes of the header are not zero")
    at = _HEADER.size
    for number in range(count):
        layout, at = _parse_layout(raw, at, number)
        yield layout
    if at != len(raw):
        raise _wrong(f"{len(raw) - at} bytes follow the last layout")


def _parse_layout(raw: bytes, at: int, number: int) -> tuple[Layout, int]:
    if not extent_fits(at, _LAYOUT.size, len(raw)):
        raise _wrong(f"section ends inside layout {number}")
    ident, part_count, zero, payload, block, zero_2 = _LAYOUT.unpack_from(raw, at)
    at += _LAYOUT.size
    if ident != number or zero or zero_2:
        raise _wrong(f"layout {number} has id {ident} or reserved fields that are not zero")
    if not 1 <= part_count <= MAX_PARTS or not extent_fits(at, part_count * _PART.size, len(raw)):
        raise _wrong(f"layout {number} has {part_count} parts, wanted 1..{MAX_PARTS} that fit")
    parts = tuple(_parse_part(raw, at + index * _PART.size) for index in range(part_count))
    layout = Layout(parts)
    if (payload, block) != (layout.payload_bytes, layout.block_bytes):
        raise _wrong(
            f"layout {number} says payload {payload}, block {block} bytes; its parts give "
            f"{layout.payload_bytes}, {layout.block_bytes}"
        )
    return layout, at + part_count * _PART.size


def _parse_part(raw: bytes, at: int) -> Part:
    (projection, role, dtype, mode, ndim, bits, group_size, rows, cols, offset, length) = (
        _PART.unpack_from(raw, at)
    )
    if ndim > 2:
        raise _wrong(f"a part has {ndim} dims, wanted 0..2")
    dims = (rows, cols)
    if any(dim != 1 for dim in dims[ndim:]):
        raise _wrong(f"a part of {ndim} dims has rows {rows}, cols {cols}; unused ones are 1")
    return Part(
        projection=_name(PROJECTIONS, projection, "projection"),
        role=_name(ROLES, role, "role"),
        dtype=dtypes.from_code(dtype),
        shape=dims[:ndim],
        mode=_name(MODES, mode, "mode"),
        bits=bits,
        group_size=group_size,
        offset_bytes=offset,
        length_bytes=length,
    )


def _name(codes: dict[str, int], code: int, what: str) -> str:
    for name, number in codes.items():
        if number == code:
            return name
    raise _wrong(f"{what} code {code} is unknown")
