"""A set as its parts, put together with every checksum right, or right but for those left wrong.

Written from specs/kexp-v1.md with struct and hashlib alone. Placing, sizes, checksums and roots are
computed when the set is put together, unless a mutation said otherwise, so that damage reaches the
rule it breaks instead of stopping at a checksum.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containers import merkle
from fuzz import json_text
from fuzz.json_text import Auto, Pairs, Spelling
from specs.fields import load_fields

STRUCTURES = load_fields().structures
SUPERBLOCK = STRUCTURES["superblock"]
ENTRY = STRUCTURES["section_entry"]
LAYOUT = STRUCTURES["layout_header"]
PART = STRUCTURES["part"]
EXPERT = STRUCTURES["expert_entry"]
LAYT_HEADER_BYTES = STRUCTURES["layout_section_header"].size_bytes
DTYPE_BITS = {code: bits for code, _, bits in load_fields().dtypes}

Files = dict[str, bytes]
Values = dict[str, Any]

# What is put right. A mutator leaves some of them out.
FIXES = ("payloads", "pin", "blocks_root", "sections", "table", "shard_root", "header", "set_root")


@dataclass
class SectionModel:
    """raw: the content. stored: what stands in the file, if not the content itself.

    document: the JSON of META, of which `raw` is made. entry: fields of the table's entry that are
    not to be what follows from the section. gap: what stands in the padding before it.
    """

    tag: bytes
    raw: bytearray
    document: Any = None
    spelling: Spelling = json_text.CANONICAL
    stored: bytes | None = None
    entry: Values = field(default_factory=dict)
    gap: bytes = b""


@dataclass
class ShardModel:
    """fields: of the superblock, likewise. length: cut or extend the file to it at last."""

    name: str
    sections: list[SectionModel]
    fields: Values
    blocks_at: int = 0
    length: int | None = None
    tail: bytes = b""

    def find(self, tag: bytes) -> SectionModel | None:
        return next((each for each in self.sections if each.tag == tag), None)


@dataclass
class SetModel:
    """files: beside the shards. manifest: kexp.json as a document with Auto nodes."""

    shards: list[ShardModel]
    manifest: Any
    files: Files
    manifest_spelling: Spelling = json_text.CANONICAL
    manifest_text: bytes | None = None
    missing: set[str] = field(default_factory=set)


# From files and to files.


def read_folder(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def to_zip(files: Mapping[str, bytes]) -> bytes:
    """Return the files as one, the same bytes for the same files; `unzip` reads it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def from_zip(data: bytes, limit_bytes: int = 64 << 20) -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > limit_bytes:
            raise ValueError("too large")
        return {Path(member.filename).name: archive.read(member) for member in members}


def parse_set(files: Mapping[str, bytes]) -> SetModel:
    """Return the parts of a valid set."""
    names = sorted(name for name in files if name.endswith(".kexp"))
    others = {name: data for name, data in files.items() if name not in (*names, "kexp.json")}
    manifest = json_text.parse(files["kexp.json"])
    automatic = []
    for key, value in manifest:
        if key == "set_root":
            value = Auto("set_root")
        elif key in ("shards", "files"):
            value = [_automatic_record(record) for record in value]
        automatic.append((key, value))
    shards = [_parse_shard(name, files[name]) for name in names]
    return SetModel(shards, Pairs(automatic), dict(others))


def _automatic_record(record: Pairs) -> Pairs:
    name = dict(record)["name"]
    return Pairs((key, value if key == "name" else Auto(key, name)) for key, value in record)


def _parse_shard(name: str, data: bytes) -> ShardModel:
    fields = SUPERBLOCK.unpack(data)
    kept = ("version_minor", "incompat_features", "compat_features", "shard_no", "shard_count")
    sections = []
    blocks_at = 0
    for index in range(fields["section_count"]):
        entry = ENTRY.unpack(data, SUPERBLOCK.size_bytes + ENTRY.size_bytes * index)
        stored = data[entry["offset"] : entry["offset"] + entry["stored_len"]]
        section = SectionModel(entry["tag"], bytearray(stored))
        if entry["codec"]:  # the content is not known here, but what its entry says of it is
            section.stored = stored
            section.entry = {key: entry[key] for key in ("raw_len", "sha256")}
        elif entry["tag"] == b"META":
            section.document = _automatic_meta(json_text.parse(stored))
        if entry["tag"] == b"BLKS":
            blocks_at = entry["offset"]
        sections.append(section)
    return ShardModel(name, sections, {key: fields[key] for key in kept}, blocks_at)


def _automatic_meta(document: Pairs) -> Pairs:
    pin = Pairs([("sha256", Auto("pin_sha256")), ("size", Auto("pin_size"))])
    return Pairs((key, pin if key == "dense_header" else value) for key, value in document)


def build(model: SetModel, fixes: frozenset[str] = frozenset(FIXES)) -> Files:
    """Return the files of the set; of the digests those in `fixes` follow from the content."""
    built = [_build_shard(shard, fixes) for shard in model.shards]
    roots = [bytes(data[104:136]) for data in built]
    set_root = merkle(roots) if roots else bytes(32)
    for shard, data in zip(model.shards, built, strict=True):
        data[72:104] = shard.fields.get("set_root", set_root if "set_root" in fixes else bytes(32))
        if "header" in fixes:
            struct.pack_into("<I", data, 4092, zlib.crc32(data[:4092]))
        if "header_crc" in shard.fields:
            struct.pack_into("<I", data, 4092, shard.fields["header_crc"])
        if shard.length is not None:
            del data[shard.length :]
    files = model.files | {
        shard.name: bytes(data) for shard, data in zip(model.shards, built, strict=True)
    }
    files["kexp.json"] = _manifest_text(model, files, set_root)
    return {name: data for name, data in files.items() if name not in model.missing}


def _manifest_text(model: SetModel, files: Files, set_root: bytes) -> bytes:
    if model.manifest_text is not None:
        return model.manifest_text

    def fill(auto: Auto) -> Any:
        if auto.kind == "set_root":
            return set_root.hex()
        data = files.get(auto.name, b"")
        if auto.kind == "size":
            return len(data)
        if auto.kind == "shard_root":
            return data[104:136].hex()
        return hashlib.sha256(data).hexdigest()

    return json_text.write(model.manifest, fill, model.manifest_spelling)


def _build_shard(shard: ShardModel, fixes: frozenset[str]) -> bytearray:
    if "pin" in fixes:
        write_meta(shard)
    _rebase_index(shard)
    if "payloads" in fixes:
        _fix_payloads(shard)
    sections = shard.sections
    out = bytearray(SUPERBLOCK.size_bytes + ENTRY.size_bytes * len(sections))
    entries = []
    for section, at in _places(shard):
        padding = at - len(out)
        out += section.gap[:padding].ljust(padding, b"\0")
        stored = bytes(section.raw) if section.stored is None else section.stored
        entries.append(_entry(shard, section, at, stored, fixes) | section.entry)
        out += stored
    out += shard.tail
    for index, entry in enumerate(entries):
        at = SUPERBLOCK.size_bytes + ENTRY.size_bytes * index
        out[at : at + ENTRY.size_bytes] = ENTRY.struct.pack(
            *(entry[each.name] for each in ENTRY.fields)
        )
    _write_superblock(shard, out, entries, fixes)
    return out


def _places(shard: ShardModel) -> Iterator[tuple[SectionModel, int]]:
    end = SUPERBLOCK.size_bytes + ENTRY.size_bytes * len(shard.sections)
    for section in shard.sections:
        align = 16384 if section.tag in (b"DENS", b"BLKS") else 128
        at = end + -end % align
        yield section, at
        end = at + len(section.raw if section.stored is None else section.stored)


def _entry(
    shard: ShardModel, section: SectionModel, at: int, stored: bytes, fixes: frozenset[str]
) -> Values:
    crc32, sha256 = zlib.crc32(stored), hashlib.sha256(section.raw).digest()
    if section.tag == b"BLKS":
        crc32, sha256 = 0, _blocks_root(shard) if "blocks_root" in fixes else bytes(32)
    elif "sections" not in fixes:
        crc32 ^= 1
    return {
        "tag": section.tag,
        "codec": 0 if section.stored is None else 1,
        "offset": at,
        "stored_len": len(stored),
        "raw_len": len(section.raw),
        "crc32": crc32,
        "reserved": 0,
        "sha256": sha256,
        "reserved_2": 0,
    }


def _blocks_root(shard: ShardModel) -> bytes:
    index = shard.find(b"EXPT")
    if index is None:
        return bytes(32)
    rows = range(0, len(index.raw) - 63, EXPERT.size_bytes)
    return merkle([bytes(index.raw[at + 32 : at + 64]) for at in rows])


def _write_superblock(
    shard: ShardModel, out: bytearray, entries: list[Values], fixes: frozenset[str]
) -> None:
    table = bytes(out[4096 : 4096 + ENTRY.size_bytes * len(entries)])
    fields: Values = {
        "magic": b"\x89KEXP\r\n\x1a",
        "version_major": 1,
        "header_size": 4096,
        "file_size": len(out) if shard.length is None else shard.length,
        "block_align": 16384,
        "tensor_align": 128,
        "section_off": 4096,
        "section_count": len(entries),
        "table_crc": zlib.crc32(table) ^ ("table" not in fixes),
        "set_root": bytes(32),
        "shard_root": bytes(32),
        "zeros": bytes(3956),
        "header_crc": 0,
    } | shard.fields
    out[:4096] = SUPERBLOCK.struct.pack(*(fields[each.name] for each in SUPERBLOCK.fields))
    items = [bytes(out[0:24]) + bytes(out[40:56])]
    items += [
        entry["tag"] + struct.pack("<Q", entry["raw_len"]) + entry["sha256"]
        for entry in entries
        if entry["tag"][:1].isupper()
    ]
    if "shard_root" in fixes and "shard_root" not in shard.fields:
        out[104:136] = merkle(items)


def write_meta(shard: ShardModel) -> None:
    meta, dens = shard.find(b"META"), shard.find(b"DENS")
    if meta is None or meta.document is None:
        return
    image = bytes(dens.raw) if dens is not None else b""
    header = image[: 8 + min(int.from_bytes(image[:8], "little"), len(image))]

    def fill(auto: Auto) -> Any:
        return len(header) if auto.kind == "pin_size" else hashlib.sha256(header).hexdigest()

    meta.raw[:] = json_text.write(meta.document, fill, meta.spelling)


def _rebase_index(shard: ShardModel) -> None:
    """Move the index along with the blocks, where other sections grew."""
    index = shard.find(b"EXPT")
    at = next((at for section, at in _places(shard) if section.tag == b"BLKS"), shard.blocks_at)
    if index is None or at == shard.blocks_at:
        return
    for row in range(0, len(index.raw) - 63, EXPERT.size_bytes):
        (offset,) = struct.unpack_from("<Q", index.raw, row + 8)
        offset = (offset + at - shard.blocks_at) % 2**64
        struct.pack_into("<Q", index.raw, row + 8, offset)
    shard.blocks_at = at


def layouts_of(raw: bytes | bytearray) -> list[tuple[int, list[int]]]:
    """Return (position of its header, positions of its parts) of each layout that is there."""
    found = []
    at = LAYT_HEADER_BYTES
    while at + LAYOUT.size_bytes <= len(raw):
        (count,) = struct.unpack_from("<H", raw, at + 2)
        parts = range(at + LAYOUT.size_bytes, len(raw) - PART.size_bytes + 1, PART.size_bytes)
        found.append((at, list(parts[:count])))
        at += LAYOUT.size_bytes + count * PART.size_bytes
    return found


def _fix_payloads(shard: ShardModel) -> None:
    """Put right crc32 and sha256 of each index entry whose block is there."""
    index, layt, blocks = shard.find(b"EXPT"), shard.find(b"LAYT"), shard.find(b"BLKS")
    if index is None or layt is None or blocks is None:
        return
    layouts = layouts_of(layt.raw)
    for row in range(0, len(index.raw) - 63, EXPERT.size_bytes):
        number, offset = struct.unpack_from("<4xH2xQ", index.raw, row)
        begin = offset - shard.blocks_at
        if number >= len(layouts) or not 0 <= begin <= len(blocks.raw):
            continue
        (length,) = struct.unpack_from("<Q", layt.raw, layouts[number][0] + 8)
        payload = blocks.raw[begin : begin + min(length, len(blocks.raw))]
        struct.pack_into("<I", index.raw, row + 24, zlib.crc32(payload))
        index.raw[row + 32 : row + 64] = hashlib.sha256(payload).digest()


def lay_out_again(layt: SectionModel) -> None:
    """Make lengths, offsets and ends of all parts follow from their shapes."""
    for header, parts in layouts_of(layt.raw):
        end = 0
        for at in parts:
            dtype, rows, cols = struct.unpack_from("<2xB5xII", layt.raw, at)
            length = rows * cols * DTYPE_BITS.get(dtype, 8) // 8 % 2**64
            offset = (end + -end % 128) % 2**64
            struct.pack_into("<QQ", layt.raw, at + 16, offset, length)
            end = offset + length
        struct.pack_into("<QQ", layt.raw, header + 8, end % 2**64, (end + -end % 16384) % 2**64)


def tile_again(shard: ShardModel, most_bytes: int = 1 << 20) -> None:
    """Make the index's lengths and offsets, and the size of BLKS, follow from LAYT.

    most_bytes: blocks beyond it are left out, so that a wild layout makes no large file.
    """
    index, layt, blocks = shard.find(b"EXPT"), shard.find(b"LAYT"), shard.find(b"BLKS")
    if index is None or layt is None or blocks is None:
        return
    layouts = layouts_of(layt.raw)
    end = 0
    for row in range(0, len(index.raw) - 63, EXPERT.size_bytes):
        (number,) = struct.unpack_from("<H", index.raw, row + 4)
        length = 16384
        if number < len(layouts):
            (length,) = struct.unpack_from("<Q", layt.raw, layouts[number][0] + 16)
        struct.pack_into("<QQ", index.raw, row + 8, (shard.blocks_at + end) % 2**64, length)
        end += length
    if end <= most_bytes:
        blocks.raw[end:] = b""
        blocks.raw.extend(bytes(end - len(blocks.raw)))
