"""The first 4096 bytes of every shard."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from formats.constants import (
    BLOCK_ALIGN,
    HEADER_BYTES,
    MAGIC,
    MAX_SECTIONS,
    MAX_SHARDS,
    TENSOR_ALIGN,
    VERSION_MAJOR,
    VERSION_MINOR,
)
from formats.errors import KexpError

# magic, version major/minor, header size, incompat, compat, file size, block/tensor align,
# shard number/count, section offset/count, CRC of the section table, set root, shard root.
_FIELDS = struct.Struct("<8sHHIQQQIIIIQII32s32s")
_CRC = struct.Struct("<I")
_CRC_OFFSET = HEADER_BYTES - _CRC.size

# Bits of incompat_features that this code understands. Version 1.0 defines none.
KNOWN_INCOMPAT_FEATURES = 0


@dataclass(frozen=True)
class Superblock:
    """The fields of a superblock; those with one legal value in version 1 are not kept."""

    file_bytes: int
    shard_no: int
    shard_count: int
    section_count: int
    table_crc32: int
    set_root: bytes
    shard_root: bytes
    version_minor: int = VERSION_MINOR
    incompat_features: int = 0
    compat_features: int = 0

    def pack(self) -> bytes:
        """Return the 4096 bytes."""
        fields = self._pack_fields()
        body = fields + bytes(_CRC_OFFSET - len(fields))
        return body + _CRC.pack(zlib.crc32(body))

    def identity(self) -> bytes:
        """Return the 40 bytes that enter the shard root: bytes 0..23 and 40..55."""
        fields = self._pack_fields()
        return fields[:24] + fields[40:56]

    def _pack_fields(self) -> bytes:
        return _FIELDS.pack(
            MAGIC,
            VERSION_MAJOR,
            self.version_minor,
            HEADER_BYTES,
            self.incompat_features,
            self.compat_features,
            self.file_bytes,
            BLOCK_ALIGN,
            TENSOR_ALIGN,
            self.shard_no,
            self.shard_count,
            HEADER_BYTES,
            self.section_count,
            self.table_crc32,
            self.set_root,
            self.shard_root,
        )


def parse_superblock(data: bytes, *, file: PurePath, actual_bytes: int) -> Superblock:
    """Return the superblock in `data` after checking every field.

    Args:
        data: the first HEADER_BYTES bytes of the file, fewer if the file is shorter.
        actual_bytes: size of the file on disk, compared with the header's.
    """

    wrong = _Wrong(file)
    fields = _checked_header(data, wrong)
    _check_fields(fields, actual_bytes, wrong)
    if any(data[_FIELDS.size : _CRC_OFFSET]):
        raise wrong("E_PADDING", _FIELDS.size, "bytes after the superblock's fields are not zero")
    return Superblock(
        file_bytes=fields.file_bytes,
        shard_no=fields.shard_no,
        shard_count=fields.shard_count,
        section_count=fields.section_count,
        table_crc32=fields.table_crc32,
        set_root=fields.set_root,
        shard_root=fields.shard_root,
        version_minor=fields.version_minor,
        incompat_features=fields.incompat_features,
        compat_features=fields.compat_features,
    )


class _Fields(NamedTuple):
    """What _FIELDS unpacks."""

    magic: bytes
    version_major: int
    version_minor: int
    header_bytes: int
    incompat_features: int
    compat_features: int
    file_bytes: int
    block_align: int
    tensor_align: int
    shard_no: int
    shard_count: int
    section_offset: int
    section_count: int
    table_crc32: int
    set_root: bytes
    shard_root: bytes


@dataclass(frozen=True)
class _Wrong:
    """Makes the error for a field of one file."""

    file: PurePath

    def __call__(self, code: str, offset_bytes: int, message: str) -> KexpError:
        return KexpError(code, message, file=self.file, offset_bytes=offset_bytes)


def _checked_header(data: bytes, wrong: _Wrong) -> _Fields:
    """Return the fields; length, magic, version and CRC say that this is a superblock."""
    if len(data) < HEADER_BYTES:
        raise wrong("E_FILE_SIZE", 0, f"{len(data)} bytes, a superblock alone is {HEADER_BYTES}")
    if data[:8] != MAGIC:
        raise wrong("E_MAGIC", 0, f"starts with {data[:8].hex()}, a .kexp file with {MAGIC.hex()}")
    fields = _Fields(*_FIELDS.unpack_from(data))
    if fields.version_major != VERSION_MAJOR:
        raise wrong(
            "E_VERSION",
            8,
            f"format version {fields.version_major}, this reader knows {VERSION_MAJOR}",
        )
    if fields.header_bytes != HEADER_BYTES:
        raise wrong("E_HEADER", 12, f"header_size {fields.header_bytes}, wanted {HEADER_BYTES}")
    (stored_crc,) = _CRC.unpack_from(data, _CRC_OFFSET)
    actual_crc = zlib.crc32(data[:_CRC_OFFSET])
    if stored_crc != actual_crc:
        raise wrong(
            "E_HEADER_CRC", _CRC_OFFSET, f"header crc32 {actual_crc:08x} != {stored_crc:08x}"
        )
    return fields


def _check_fields(fields: _Fields, actual_bytes: int, wrong: _Wrong) -> None:
    """Hold each field to what version 1 allows."""
    unknown = fields.incompat_features & ~KNOWN_INCOMPAT_FEATURES
    if unknown:
        bits = ", ".join(str(bit) for bit in range(64) if unknown >> bit & 1)
        raise wrong("E_FEATURE", 16, f"needs feature bit {bits}, unknown here: use a later version")
    if fields.file_bytes != actual_bytes:
        raise wrong(
            "E_FILE_SIZE",
            32,
            f"{actual_bytes} bytes on disk, the header says {fields.file_bytes}: "
            "fetch the file again",
        )
    aligns = (fields.block_align, fields.tensor_align)
    if aligns != (BLOCK_ALIGN, TENSOR_ALIGN):
        raise wrong(
            "E_HEADER",
            40,
            f"alignments {aligns[0]}, {aligns[1]}; wanted {BLOCK_ALIGN}, {TENSOR_ALIGN}",
        )
    shard_no, shard_count = fields.shard_no, fields.shard_count
    if not 1 <= shard_count <= MAX_SHARDS or shard_no >= shard_count:
        raise wrong("E_HEADER", 48, f"shard {shard_no} of {shard_count} is impossible")
    if fields.section_offset != HEADER_BYTES:
        raise wrong("E_HEADER", 56, f"section_off {fields.section_offset}, wanted {HEADER_BYTES}")
    if not 1 <= fields.section_count <= MAX_SECTIONS:
        raise wrong("E_HEADER", 64, f"{fields.section_count} sections, wanted 1..{MAX_SECTIONS}")
