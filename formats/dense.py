"""Dense weights: a complete safetensors image inside section DENS.

Any safetensors reader can be given the section's bytes. Ours exists because the image is used in
place, through the map, and because the stock reader wants the file to itself.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from formats import canonical_json, dtypes
from formats.constants import (
    MAX_JSON_BYTES,
    MAX_JSON_INT,
    MAX_TENSOR_DIMS,
    TENSOR_ALIGN,
    extent_fits,
    round_up,
)
from formats.errors import KexpError, in_file
from formats.repeats import first_repeated

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class DenseSpec:
    """A dense tensor to be written: name, dtype name, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def length_bytes(self) -> int:
        return dtypes.num_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class DenseTensor:
    """A dense tensor of an opened set; offset_bytes counts from the start of the shard's file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True)
class DenseImage:
    """A planned image.

    header: the 8 length bytes and the JSON, padded with spaces to TENSOR_ALIGN.
    offsets: of each tensor, from the start of the image. total_bytes: header and data.
    """

    header: bytes
    specs: tuple[DenseSpec, ...]
    offsets: tuple[int, ...]
    total_bytes: int


def plan_image(specs: Sequence[DenseSpec]) -> DenseImage:
    """Return where each tensor goes; a pure function of `specs`.

    safetensors allows no holes, so a tensor whose length is not a multiple of TENSOR_ALIGN would
    push every later one off its alignment. Those go last, widest elements first: all tensors are
    aligned to their element, and all but those last few (scalars and odd biases) to TENSOR_ALIGN.

    Raises:
        KexpError: E_DENSE for a repeated name, E_DTYPE, E_LIMIT, E_JSON_VALUE.
    """
    twice = first_repeated(spec.name for spec in specs)
    if twice is not None:
        raise KexpError("E_DENSE", f"dense tensor {twice!r} is listed twice")
    ordered = sorted(specs, key=_placement)
    header: dict[str, Any] = {}
    offset = 0
    starts = []
    for spec in ordered:
        end = offset + spec.length_bytes
        header[spec.name] = {
            "dtype": dtypes.to_safetensors(spec.dtype),
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        starts.append(offset)
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    if len(text) > MAX_JSON_BYTES - TENSOR_ALIGN:
        raise KexpError("E_LIMIT", f"dense header of {len(text)} bytes, at most {MAX_JSON_BYTES}")
    data_start = round_up(_LENGTH.size + len(text), TENSOR_ALIGN)
    padded = _LENGTH.pack(data_start - _LENGTH.size) + text.ljust(data_start - _LENGTH.size)
    parse_image_header(padded, section_bytes=data_start + offset, base_bytes=0, file=None)
    return DenseImage(
        padded, tuple(ordered), tuple(data_start + start for start in starts), data_start + offset
    )


def _placement(spec: DenseSpec) -> tuple[int, int]:
    if spec.length_bytes % TENSOR_ALIGN == 0:
        return 0, 0  # sorted() is stable: the caller's order stands
    return 1, -dtypes.lookup(spec.dtype).bits


def header_bytes(start: bytes, *, section_bytes: int, file: PurePath | None) -> int:
    """Return the bytes of length field and JSON together, from the image's first 8 bytes."""
    if len(start) < _LENGTH.size:
        raise KexpError("E_DENSE", f"dense section of {len(start)} bytes", file=file)
    (json_bytes,) = _LENGTH.unpack_from(start)
    if json_bytes > MAX_JSON_BYTES:
        raise KexpError(
            "E_LIMIT", f"dense header of {json_bytes} bytes, at most {MAX_JSON_BYTES}", file=file
        )
    if not extent_fits(_LENGTH.size, json_bytes, section_bytes):
        raise KexpError(
            "E_DENSE", f"dense header of {json_bytes} bytes leaves its section", file=file
        )
    return _LENGTH.size + int(json_bytes)


def parse_image_header(
    header: bytes,
    *,
    section_bytes: int,
    base_bytes: int,
    file: PurePath | None,
    shard: int = 0,
) -> dict[str, DenseTensor]:
    """Return the tensors of an image, in the order of their data.

    Args:
        header: length field and JSON.
        section_bytes: of the whole image; the data must end just there.
        base_bytes: added to every offset, so that they count from the start of the file.
    Raises:
        KexpError: E_DENSE, E_DTYPE, E_JSON_*.
    """

    def wrong(message: str) -> KexpError:
        return KexpError("E_DENSE", f"dense section: {message}", file=file)

    if header[_LENGTH.size : _LENGTH.size + 1] != b"{":
        raise wrong("header does not begin with {")
    document = canonical_json.decode(
        header[_LENGTH.size :], what="dense header", file=file, canonical=False
    )
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(text) is not str for text in metadata.values()):
        raise wrong("__metadata__ wanted as an object of strings")
    with in_file(file):
        tensors = [_parse_entry(name, entry) for name, entry in document.items()]
    tensors.sort(key=lambda each: (each.offset_bytes, each.length_bytes))
    data_start = len(header)
    floor = 0
    found = {}
    for tensor in tensors:
        if tensor.offset_bytes != floor:
            raise wrong(f"{tensor.name!r} begins at {tensor.offset_bytes}, wanted {floor}")
        floor += tensor.length_bytes
        found[tensor.name] = DenseTensor(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            shard,
            base_bytes + data_start + tensor.offset_bytes,
            tensor.length_bytes,
        )
    if data_start + floor != section_bytes:
        raise wrong(f"tensors end at {data_start + floor}, the section at {section_bytes}")
    return found


def _parse_entry(name: str, entry: Any) -> DenseTensor:
    def wrong(message: str) -> KexpError:
        return KexpError("E_DENSE", f"dense tensor {name!r}: {message}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("entry wanted with dtype, shape, data_offsets")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        raise wrong("dtype, shape or data_offsets of a wrong type")
    if len(shape) > MAX_TENSOR_DIMS or len(offsets) != 2:
        raise wrong(f"{len(shape)} dims, {len(offsets)} offsets")
    # Zeros count as ones, so that the answer does not depend on the order of multiplication in a
    # language whose integers wrap.
    if math.prod(dim or 1 for dim in shape) > MAX_JSON_INT:
        raise wrong(f"shape {shape} has too many elements")
    dtype = dtypes.from_safetensors(dtype_name)
    length = dtypes.num_bytes(dtype, shape)
    begin, end = offsets
    if end < begin or end - begin != length:
        raise wrong(f"{dtype} {shape} is {length} bytes, data_offsets {begin}..{end}")
    return DenseTensor(name, dtype, tuple(shape), 0, begin, length)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
