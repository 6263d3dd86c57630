"""The files of a set: sections placed, checksums and roots put in."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contents import Model, spell

ENTRY = 80
Files = dict[str, bytearray]


def tree(items: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1."""
    if len(items) == 1:
        return hashlib.sha256(b"\0" + items[0]).digest()
    split = 1
    while split * 2 < len(items):
        split *= 2
    return hashlib.sha256(b"\1" + tree(items[:split]) + tree(items[split:])).digest()


@dataclass
class Section:
    """A section to be placed; `stored` differs from `raw` when it is compressed."""

    tag: bytes
    raw: bytes
    stored: bytes | None = None


def model_sections(model: Model, layers: Sequence[int]) -> dict[bytes, bytes]:
    layouts = b"".join(layout.pack(number) for number, layout in enumerate(model.layouts))
    entries, blocks = b"", b""
    for layer in layers:
        layout, count = model.layers[layer]
        for expert in range(count):
            block = model.block(layer, expert)
            payload = block[: model.layouts[layout].payload]
            # The offset is counted from the start of BLKS until that is placed.
            entries += struct.pack("<HHHHQQ", layer, expert, layout, 0, len(blocks), len(block))
            entries += struct.pack("<II", zlib.crc32(payload), 0)
            entries += hashlib.sha256(payload).digest()
            blocks += block
    return {
        b"META": spell(model.document()),
        b"LAYT": struct.pack("<I12x", len(model.layouts)) + layouts,
        b"EXPT": entries,
        b"DENS": model.dense_image(),
        b"BLKS": blocks,
    }


def place(number: int, count: int, sections: Sequence[Section]) -> bytearray:
    """Return a shard with its sections placed; `seal` puts in what depends on content."""
    out = bytearray(4096 + ENTRY * len(sections))
    for index, section in enumerate(sections):
        stored = section.raw if section.stored is None else section.stored
        out += bytes(-len(out) % (16384 if section.tag in (b"DENS", b"BLKS") else 128))
        codec = 0 if section.stored is None else 1
        lengths = (len(out), len(stored), len(section.raw))
        digest = hashlib.sha256(section.raw).digest()
        crc32 = zlib.crc32(stored)
        if section.tag == b"BLKS":
            move_index(out, len(out))
            digest, crc32 = blocks_root(out), 0
        struct.pack_into(
            "<4sIQQQII32sQ",
            out,
            4096 + ENTRY * index,
            section.tag,
            codec,
            *lengths,
            crc32,
            0,
            digest,
            0,
        )
        out += stored
    struct.pack_into(
        "<8sHHIQQQIIIIQI",
        out,
        0,
        b"\x89KEXP\r\n\x1a",
        1,
        0,
        4096,
        0,
        0,
        len(out),
        16384,
        128,
        number,
        count,
        4096,
        len(sections),
    )
    return out


def table(data: bytearray) -> dict[bytes, tuple[int, int, int, int]]:
    """Return tag -> (position of the entry, codec, offset, stored length)."""
    found = {}
    for at in range(4096, 4096 + ENTRY * struct.unpack_from("<I", data, 64)[0], ENTRY):
        tag, codec, offset, stored = struct.unpack_from("<4sIQQ", data, at)
        if tag and tag not in found:
            found[tag] = at, codec, offset, stored
    return found


def index_rows(data: bytearray) -> list[int]:
    entries = table(data)
    if b"EXPT" not in entries:
        return []
    _, _, offset, stored = entries[b"EXPT"]
    return list(range(offset, offset + stored, 64))


def move_index(data: bytearray, base: int) -> None:
    struct.pack_into("<I", data, 64, (struct.unpack_from("<Q", data, 4104)[0] - 4096) // ENTRY)
    for row in index_rows(data):
        (offset,) = struct.unpack_from("<Q", data, row + 8)
        struct.pack_into("<Q", data, row + 8, base + offset)


def blocks_root(data: bytearray) -> bytes:
    return tree([bytes(data[row + 32 : row + 64]) for row in index_rows(data)])


def shard_name(number: int, count: int) -> str:
    return "model.kexp" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.kexp"


def make(model: Model, change: Callable[[list[Section]], list[Section]] | None = None) -> Files:
    """Return the files of the set, sealed. `change`: another list of sections, of every shard."""
    tags: list[tuple[tuple[bytes, ...], list[int]]]
    if model.shards is None:
        tags = [((b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS"), list(model.layers))]
    else:
        tags = [((b"META", b"LAYT", b"DENS"), [])]
        tags += [((b"LAYT", b"EXPT", b"BLKS"), layers) for layers in model.shards]
    files: Files = {name: bytearray(data) for name, data in model.files.items()}
    for number, (wanted, layers) in enumerate(tags):
        raws = model_sections(model, layers)
        sections = [Section(tag, raws[tag]) for tag in wanted]
        if change is not None:
            sections = change(sections)
        files[shard_name(number, len(tags))] = place(number, len(tags), sections)
    seal(files)
    return files


def seal(
    files: Files,
    *,
    sections: bool = True,
    blocks: bool = True,
    tables: bool = True,
    roots: bool = True,
    headers: bool = True,
    manifest: bool = True,
) -> None:
    """Put right every checksum and root, in the order in which they depend on one another."""
    names = sorted(name for name in files if name.endswith(".kexp"))
    for name in names:
        data = files[name]
        for tag, (at, codec, offset, stored) in table(data).items():
            if not sections or tag == b"BLKS" or codec or offset + stored > len(data):
                continue
            raw = bytes(data[offset : offset + stored])
            struct.pack_into("<I", data, at + 32, zlib.crc32(raw))
            data[at + 40 : at + 72] = hashlib.sha256(raw).digest()
        if blocks and b"BLKS" in table(data) and index_rows(data):
            at = table(data)[b"BLKS"][0]
            data[at + 40 : at + 72] = blocks_root(data)
        if tables:
            end = 4096 + ENTRY * struct.unpack_from("<I", data, 64)[0]
            struct.pack_into("<I", data, 68, zlib.crc32(bytes(data[4096:end])))
        if roots:
            data[104:136] = shard_root(data)
    if roots:
        set_root = tree([bytes(files[name][104:136]) for name in names])
        for name in names:
            files[name][72:104] = set_root
    if headers:
        for name in names:
            data = files[name]
            struct.pack_into("<I", data, 4092, zlib.crc32(bytes(data[:4092])))
    if manifest:
        files["kexp.json"] = bytearray(spell(make_manifest(files, names)))


def shard_root(data: bytearray) -> bytes:
    ends = 4096 + ENTRY * struct.unpack_from("<I", data, 64)[0]
    return tree(
        [
            bytes(data[0:24] + data[40:56]),
            *(
                bytes(data[at : at + 4] + data[at + 24 : at + 32] + data[at + 40 : at + 72])
                for at in range(4096, ends, ENTRY)
                if data[at : at + 1].isupper()
            ),
        ]
    )


UNPINNED = {"README.md", "LICENSE", "notes.txt", "kexp.json"}


def make_manifest(files: Files, names: Sequence[str]) -> dict[str, Any]:
    return {
        "files": [
            {
                "name": name,
                "sha256": hashlib.sha256(files[name]).hexdigest(),
                "size": len(files[name]),
            }
            for name in sorted(files)
            if not name.endswith(".kexp") and name not in UNPINNED
        ],
        "format": "kexp",
        "set_root": bytes(files[names[0]][72:104]).hex(),
        "shards": [
            {
                "name": name,
                "shard_root": bytes(files[name][104:136]).hex(),
                "size": len(files[name]),
            }
            for name in names
        ],
        "version": 1,
    }
