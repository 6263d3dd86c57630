"""Read GGUF headers and raw tensor rows from a file that is not trusted.

`gguf.GGUFReader` believes every count in the file: 43 bytes are enough to hang version 0.19, and it
spends 1.7 s and 130 MB on a 49 152-token vocabulary. Every length here is compared with the bytes
that are left before anything is looped over or allocated. The tables of facts (type numbers, block
sizes) are the `gguf` package's.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from kandiga_pack.errors import PackError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_NAME_BYTES = 1024
MAX_STRING_BYTES = 64 << 20
MAX_ALIGNMENT = 1 << 20
MAX_PARTS = 1024
# A file of many gigabytes of zeros passes the test against the bytes left; these stop it.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_ARRAY_ITEMS = 1 << 24

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
# Smallest encodings, to refuse a count that the rest of the file cannot hold.
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
_MIN_STRING_BYTES = 8

_PART_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file; `shape` has rows first, as numpy has it (GGUF stores it reversed).

    The last axis is the one that is quantized in blocks.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    path: Path
    offset_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of `shape[-1]` weights."""
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return int(self.shape[-1] // block * block_bytes)

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    def read_rows(self, start: int, count: int) -> bytes:
        """Bytes of rows `start` to `start + count`, all leading axes flattened into rows.

        Raises:
            PackError: the file ended early (it was cut after it was opened).
        """
        wanted = count * self.row_bytes
        offset = self.offset_bytes + start * self.row_bytes
        # Opened per read: a source is held open for hours and a model may have dozens of parts.
        fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            chunks = []
            while wanted > 0:
                chunk = os.pread(fd, wanted, offset)
                if not chunk:
                    raise PackError(
                        f"{self.path.name}: tensor {self.name} ends {wanted} bytes early; "
                        "the file changed while it was read. Get the file again"
                    )
                chunks.append(chunk)
                wanted -= len(chunk)
                offset += len(chunk)
        finally:
            os.close(fd)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@dataclass(frozen=True)
class GgufModel:
    """Metadata and tensors of a model, from one file or from all its `-00001-of-0000N` parts."""

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


class _Cursor:
    """Walks a header; every step is checked against the end of the file."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self.data) - self.position

    def fail(self, problem: str) -> PackError:
        return PackError(
            f"{self.path.name}: at byte {self.position}: {problem}. "
            "The file is damaged or cut short: get it again"
        )

    def take(self, length: int) -> memoryview:
        if length > self.remaining:
            raise self.fail(f"{length} bytes wanted, {self.remaining} are left")
        view = self.data[self.position : self.position + length]
        self.position += length
        return view

    def scalar(self, fmt: str) -> Any:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]

    def string(self, limit: int) -> str:
        length = self.scalar("<Q")
        if length > limit:
            raise self.fail(f"a string of {length} bytes, at most {limit} are allowed")
        raw = bytes(self.take(length))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"a string that is not UTF-8: {raw[:40]!r}") from None

    def count(self, min_item_bytes: int, limit: int, what: str) -> int:
        count = int(self.scalar("<Q"))
        if count > limit:
            raise self.fail(f"{count} {what}, at most {limit} are allowed")
        if count > self.remaining // min_item_bytes:
            raise self.fail(f"{count} {what}, but only {self.remaining} bytes are left")
        return count

    def value_type(self) -> GGUFValueType:
        number = self.scalar("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"metadata type {number}, known are 0 to 12") from None

    def value(self) -> Any:
        kind = self.value_type()
        return self.array() if kind is GGUFValueType.ARRAY else self.item(kind)

    def item(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self.string(MAX_STRING_BYTES)
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind = self.value_type()
        if kind is GGUFValueType.ARRAY:
            raise self.fail("an array of arrays, which no key of ours uses")
        if kind is GGUFValueType.STRING:
            count = self.count(_MIN_STRING_BYTES, MAX_ARRAY_ITEMS, "strings")
            return [self.string(MAX_STRING_BYTES) for _ in range(count)]
        fmt = _SCALARS[kind]
        size = struct.calcsize(fmt)
        count = self.count(size, MAX_ARRAY_ITEMS, "values")
        return list(struct.unpack(f"<{count}{fmt[1]}", self.take(count * size)))


def open_gguf(path: Path) -> GgufModel:
    """Read the header of `path` and of the other parts, where its name is `-0000k-of-0000n.gguf`.

    Raises:
        PackError: not a GGUF file, a damaged one, one of another version or byte order, a part that
            is missing, two tensors of one name.
    """
    paths = _part_paths(path)
    metadata: dict[str, Any] = {}
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(paths):
        part_metadata, part_tensors = _read_file(part)
        if number == 0:
            metadata = part_metadata
        for tensor in part_tensors:
            if tensor.name in tensors:
                raise PackError(f"{part.name}: tensor {tensor.name} occurs twice")
            tensors[tensor.name] = tensor
    declared = metadata.get("split.count", 1)
    if declared not in (0, 1, len(paths)):
        raise PackError(
            f"{path.name}: one of {declared} parts by its split.count, but {len(paths)} found by "
            "its name. Keep the names the parts were published under (-00001-of-0000N.gguf)"
        )
    return GgufModel(tuple(paths), metadata, tensors)


def _part_paths(path: Path) -> list[Path]:
    match = _PART_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= MAX_PARTS:
        raise PackError(f"{path.name}: {count} parts, 1 to {MAX_PARTS} are supported")
    parts = [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise PackError(
            f"{path.name}: {len(missing)} of {count} parts missing, first {missing[0]}. "
            "Put all parts in one folder"
        )
    return parts


def _read_file(path: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 24:
            raise PackError(f"{path.name}: {size} bytes, a GGUF header has 24. Get the file again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            cursor = _Cursor(view, path)
            try:
                return _read_header(cursor)
            finally:
                # A view that an exception's traceback keeps alive would forbid closing the map.
                cursor.data = memoryview(b"")
                view.release()


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], list[GgufTensor]]:
    path = cursor.path
    magic = bytes(cursor.take(4))
    if magic != MAGIC:
        raise PackError(f"{path.name}: begins with {magic!r}, a GGUF file begins with {MAGIC!r}")
    version = cursor.scalar("<I")
    if version & 0xFFFF == 0:
        raise PackError(f"{path.name}: a big-endian GGUF; only little-endian ones are supported")
    if version not in VERSIONS:
        raise PackError(
            f"{path.name}: GGUF version {version}, supported are {VERSIONS}. "
            "Convert the model again with a current llama.cpp"
        )
    num_tensors = cursor.count(_MIN_TENSOR_BYTES, MAX_TENSORS, "tensors")
    num_keys = cursor.count(_MIN_KEY_BYTES, MAX_KEYS, "metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string(MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.fail(f"metadata key {key} occurs twice")
        metadata[key] = cursor.value()
    infos = [_read_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = _alignment(cursor, metadata)
    data_start = -(-cursor.position // alignment) * alignment
    return metadata, [_locate(cursor, data_start, alignment, *info) for info in infos]


def _read_tensor_info(
    cursor: _Cursor,
) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    name = cursor.string(MAX_NAME_BYTES)
    num_dims = cursor.scalar("<I")
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.fail(f"tensor {name} has {num_dims} dimensions, 1 to {MAX_DIMS} are allowed")
    dims = [cursor.scalar("<Q") for _ in range(num_dims)]
    number = cursor.scalar("<I")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise cursor.fail(f"tensor {name} has unknown type {number}") from None
    return name, kind, tuple(reversed(dims)), cursor.scalar("<Q")


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or not 1 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise cursor.fail(f"general.alignment is {alignment!r}, a power of two is wanted")
    return alignment


def _locate(
    cursor: _Cursor,
    data_start: int,
    alignment: int,
    name: str,
    kind: GGMLQuantizationType,
    shape: tuple[int, ...],
    relative_offset: int,
) -> GgufTensor:
    """Check that the tensor lies in the file (Python's integers cannot wrap as C's do)."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if min(shape) == 0 or shape[-1] % block:
        raise cursor.fail(
            f"tensor {name} of type {kind.name} has shape {shape}; "
            f"the last axis must be a positive multiple of {block}"
        )
    if relative_offset % alignment:
        raise cursor.fail(f"tensor {name} at offset {relative_offset}, not aligned to {alignment}")
    length = math.prod(shape) // block * block_bytes
    size = len(cursor.data)
    offset = data_start + relative_offset
    if offset > size or length > size - offset:
        raise cursor.fail(
            f"tensor {name} needs bytes {offset} to {offset + length}, the file has {size}"
        )
    return GgufTensor(name, kind, shape, cursor.path, offset)
