"""Layouts as bytes: section LAYT."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import PurePath

from formats import dtypes
from formats.constants import MAX_LAYOUTS, MAX_PARTS, extent_fits
from formats.errors import KexpError, in_file
from formats.layout import MODES, PROJECTIONS, ROLES, Layout, Part

# layout count, then reserved
_HEADER = struct.Struct("<I12x")
# id, part count, payload bytes, block bytes, reserved
_LAYOUT = struct.Struct("<HHIQQQ")
# projection, role, dtype, mode, ndim, bits, group size, rows, cols, offset, length
_PART = struct.Struct("<BBBBBBHIIQQ")

MAX_LAYOUT_SECTION_BYTES = _HEADER.size + MAX_LAYOUTS * (_LAYOUT.size + MAX_PARTS * _PART.size)


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
        return _parse(raw)


# Every shard of a set has the same section; parsing the largest there can be takes half a second.
@lru_cache(maxsize=1)
def _parse(raw: bytes) -> tuple[Layout, ...]:
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


def _wrong(message: str) -> KexpError:
    return KexpError("E_LAYOUT", f"layout: {message}")
