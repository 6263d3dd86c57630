"""The section table: which stretch of a shard is what, and how its bytes are checked."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import zstandard

from formats.constants import (
    BLOCK_ALIGN,
    EXPERT_ENTRY_BYTES,
    HEADER_BYTES,
    MAX_EXPERTS_PER_SHARD,
    MAX_JSON_BYTES,
    MAX_ZSTD_WINDOW_BYTES,
    SECTION_ENTRY_BYTES,
    TENSOR_ALIGN,
    extent_fits,
    round_up,
)
from formats.errors import KexpError, short
from formats.layout_section import MAX_LAYOUT_SECTION_BYTES

META, LAYT, EXPT, DENS, BLKS = b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS"
_ORDER = (META, LAYT, EXPT, DENS, BLKS)
# These are used in place, through the map, so they cannot be compressed.
_ALWAYS_RAW = frozenset({EXPT, DENS, BLKS})
_PAGE_ALIGNED = frozenset({DENS, BLKS})

CODEC_RAW = 0
CODEC_ZSTD = 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Decoded into memory at once, so bounded whatever the section is.
MAX_COMPRESSED_RAW_BYTES = MAX_JSON_BYTES
# These are read whole before anything else is, from a disk or by range requests.
_MAX_RAW_BYTES = {
    META: MAX_JSON_BYTES,
    LAYT: MAX_LAYOUT_SECTION_BYTES,
    EXPT: EXPERT_ENTRY_BYTES * MAX_EXPERTS_PER_SHARD,
}

# tag, codec, offset, stored length, raw length, CRC-32 of the stored bytes, reserved, digest,
# reserved.
_ENTRY = struct.Struct("<4sIQQQII32sQ")
_IDENTITY = struct.Struct("<4sQ32s")


@dataclass(frozen=True)
class Section:
    """One entry of the table.

    crc32 covers the stored bytes and sha256 the raw ones. BLKS is the exception, since its blocks
    carry their own: there crc32 is 0 and sha256 the tree root over the blocks' SHA-256.
    """

    tag: bytes
    offset_bytes: int
    stored_bytes: int
    raw_bytes: int
    crc32: int
    sha256: bytes
    codec: int = CODEC_RAW

    @property
    def is_critical(self) -> bool:
        """Whether a reader that does not know the tag must refuse the file."""
        return self.tag[:1].isupper()

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.stored_bytes

    @property
    def name(self) -> str:
        return self.tag.decode("ascii", "backslashreplace")

    def pack(self) -> bytes:
        """Return the 80 bytes of the entry."""
        return _ENTRY.pack(
            self.tag,
            self.codec,
            self.offset_bytes,
            self.stored_bytes,
            self.raw_bytes,
            self.crc32,
            0,
            self.sha256,
            0,
        )

    def identity(self) -> bytes:
        """Return the 44 bytes that enter the shard root: tag, raw length, digest."""
        return _IDENTITY.pack(self.tag, self.raw_bytes, self.sha256)


def section_align(tag: bytes) -> int:
    """Return the alignment of a section's first byte."""
    return BLOCK_ALIGN if tag in _PAGE_ALIGNED else TENSOR_ALIGN


def first_section_floor(section_count: int) -> int:
    """Return the end of the section table, before which no section begins."""
    return HEADER_BYTES + SECTION_ENTRY_BYTES * section_count


def required_tags(shard_no: int, shard_count: int) -> tuple[bytes, ...]:
    """Return the critical sections of a shard, in file order.

    The first of several shards holds no experts, the others hold nothing but experts: metadata and
    dense weights can be fetched without them, and repaired apart from them.
    """
    if shard_count == 1:
        return _ORDER
    return (META, LAYT, DENS) if shard_no == 0 else (LAYT, EXPT, BLKS)


def parse_table(
    data: bytes, *, table_crc32: int, file: PurePath, file_bytes: int
) -> tuple[Section, ...]:
    """Return the sections whose entries fill `data`, each checked by itself and as a tiling."""
    actual = zlib.crc32(data)
    if actual != table_crc32:
        raise KexpError(
            "E_TABLE_CRC",
            f"section table crc32 {actual:08x} != {table_crc32:08x}",
            file=file,
            offset_bytes=HEADER_BYTES,
        )
    sections: list[Section] = []
    floor = HEADER_BYTES + len(data)
    for index in range(len(data) // SECTION_ENTRY_BYTES):
        at = index * SECTION_ENTRY_BYTES
        section = _parse_entry(data, at, file)
        _check_extent(section, floor, file, file_bytes, HEADER_BYTES + at)
        floor = section.end_bytes
        sections.append(section)
    if floor != file_bytes:
        raise KexpError(
            "E_SECTION_EXTENT",
            f"the last section ends at {floor:#x}, the file at {file_bytes:#x}",
            file=file,
        )
    return tuple(sections)


def _parse_entry(data: bytes, at: int, file: PurePath) -> Section:
    tag, codec, offset, stored, raw, crc, reserved, sha, reserved_2 = _ENTRY.unpack_from(data, at)

    def wrong(code: str, message: str) -> KexpError:
        return KexpError(code, message, file=file, offset_bytes=HEADER_BYTES + at)

    if not (tag.isalpha() and tag.isascii()):
        raise wrong("E_SECTION_TAG", f"section tag {tag!r} is not four letters")
    section = Section(tag, offset, stored, raw, crc, sha, codec)
    if section.is_critical and tag not in _ORDER:
        raise wrong("E_SECTION_TAG", f"critical section {section.name} is unknown here")
    if codec not in (CODEC_RAW, CODEC_ZSTD):
        raise wrong("E_SECTION_CODEC", f"section {section.name} has codec {codec}, wanted 0 or 1")
    if codec != CODEC_RAW and tag in _ALWAYS_RAW:
        raise wrong("E_SECTION_CODEC", f"section {section.name} is compressed, wanted raw")
    if reserved or reserved_2:
        raise wrong("E_PADDING", f"reserved fields of section {section.name} are not zero")
    if tag == BLKS and crc:
        raise wrong("E_SECTION_CRC", f"section BLKS has crc32 {crc:08x}, wanted 0")
    return section


def _check_extent(
    section: Section, floor: int, file: PurePath, file_bytes: int, entry_offset: int
) -> None:
    offset, stored, raw = section.offset_bytes, section.stored_bytes, section.raw_bytes

    def wrong(message: str) -> KexpError:
        return KexpError(
            "E_SECTION_EXTENT",
            f"section {section.name} {message}",
            file=file,
            offset_bytes=entry_offset,
        )

    wanted = round_up(floor, section_align(section.tag))
    if offset != wanted:
        raise wrong(f"begins at {offset:#x}, wanted {wanted:#x}")
    if stored == 0 or raw == 0:
        raise wrong(f"is empty: stored {stored}, raw {raw} bytes")
    if not extent_fits(offset, stored, file_bytes):
        raise wrong(f"at {offset:#x} with {stored} bytes leaves the file of {file_bytes}")
    if section.codec == CODEC_RAW and stored != raw:
        raise wrong(f"is raw, yet {stored} bytes stored are not {raw} bytes raw")
    most = _MAX_RAW_BYTES.get(section.tag)
    if most is not None and raw > most:
        raise KexpError(
            "E_LIMIT",
            f"section {section.name} of {raw} bytes, at most {most}",
            file=file,
            offset_bytes=entry_offset,
        )
    if section.codec == CODEC_ZSTD and raw > MAX_COMPRESSED_RAW_BYTES:
        raise KexpError(
            "E_LIMIT",
            f"compressed section {section.name} of {raw} bytes, at most {MAX_COMPRESSED_RAW_BYTES}",
            file=file,
            offset_bytes=entry_offset,
        )
    if section.codec == CODEC_ZSTD and stored >= raw:
        raise wrong(f"is compressed from {raw} to {stored} bytes; what does not shrink is raw")


def check_tags(
    sections: Sequence[Section], shard_no: int, shard_count: int, file: PurePath
) -> None:
    """Raise KexpError E_SECTION_SET unless the shard has just the sections of its place."""
    critical = tuple(section.tag for section in sections if section.is_critical)
    wanted = required_tags(shard_no, shard_count)
    if critical != wanted:
        raise KexpError(
            "E_SECTION_SET",
            f"shard {shard_no + 1} of {shard_count} has sections {_names(critical)}, "
            f"wanted {_names(wanted)}",
            file=file,
        )
    ancillary = [section.tag for section in sections if not section.is_critical]
    if any(not section.is_critical for section in sections[: len(critical)]):
        raise KexpError("E_SECTION_SET", "an ancillary section precedes a critical one", file=file)
    if len(set(ancillary)) != len(ancillary):
        raise KexpError("E_SECTION_SET", "an ancillary section occurs twice", file=file)


def _names(tags: Sequence[bytes]) -> str:
    return " ".join(tag.decode("ascii") for tag in tags)


def decode_section(section: Section, stored: bytes, *, file: PurePath) -> bytes:
    """Return the raw bytes of a section after checking both of its checksums.

    `section.raw_bytes` is allocated; `parse_table` compared it with the section's limit.

    Raises:
        KexpError: E_SECTION_CRC, E_SECTION_CODEC, E_SECTION_SHA256.
    """

    def wrong(code: str, message: str) -> KexpError:
        return KexpError(
            code, f"section {section.name}: {message}", file=file, offset_bytes=section.offset_bytes
        )

    actual = zlib.crc32(stored)
    if actual != section.crc32:
        raise wrong("E_SECTION_CRC", f"crc32 {actual:08x} != {section.crc32:08x}")
    raw = stored
    if section.codec == CODEC_ZSTD:
        try:
            raw = _decompress(stored, section.raw_bytes)
        except (ValueError, zstandard.ZstdError) as error:
            raise wrong("E_SECTION_CODEC", f"not a zstd frame of version 1: {error}") from None
    digest = hashlib.sha256(raw).digest()
    if digest != section.sha256:
        raise wrong("E_SECTION_SHA256", f"sha256 {short(digest)} != {short(section.sha256)}")
    return raw


def _decompress(stored: bytes, raw_bytes: int) -> bytes:
    """Return the content of the single frame `stored`; the frame must announce `raw_bytes`."""
    if stored[:4] != _ZSTD_MAGIC:
        raise ValueError("wrong frame magic")
    frame = zstandard.get_frame_parameters(stored)
    if frame.content_size != raw_bytes:
        raise ValueError(f"frame announces {frame.content_size} bytes, the table {raw_bytes}")
    if frame.window_size > MAX_ZSTD_WINDOW_BYTES:
        raise ValueError(f"window of {frame.window_size} bytes, at most {MAX_ZSTD_WINDOW_BYTES}")
    if frame.dict_id:
        raise ValueError(f"needs dictionary {frame.dict_id}")
    # One shot into a buffer of the announced size: a frame that lies about it cannot grow.
    return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
