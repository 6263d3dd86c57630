"""A case, and sets in which something is other than it should be."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from contents import Model, spell
from models import tiny
from sets import Files, Section, make, seal, table
from zstd_frames import frame, frame_of_pairs


@dataclass
class Case:
    """A set and what is to be said about it. writer: the reference writer makes the same bytes."""

    name: str
    files: Mapping[str, bytes | bytearray]
    note: str
    code: str | None = None
    level: str = "open"
    writer: bool = False


Poke = Callable[[bytearray], None]


def poke(offset: int, layout: str, *values: Any) -> Poke:
    """Overwrite a field of the superblock."""
    return lambda data: struct.pack_into(layout, data, offset, *values)


def entry(tag: bytes, offset: int, layout: str, *values: Any) -> Poke:
    """Overwrite a field of a section's table entry."""
    return lambda data: struct.pack_into(layout, data, table(data)[tag][0] + offset, *values)


def inside(tag: bytes, offset: int, layout: str, *values: Any) -> Poke:
    """Overwrite a field inside a section."""
    return lambda data: struct.pack_into(layout, data, table(data)[tag][2] + offset, *values)


def changed(model: Model, *pokes: Poke, shard: int = 0, **seals: bool) -> Files:
    """Return the set with fields of one shard overwritten, sealed again as `seals` say."""
    files = make(model)
    name = sorted(name for name in files if name.endswith(".kexp"))[shard]
    for each in pokes:
        each(files[name])
    seal(files, **seals)
    return files


def append(*more: Section) -> Callable[..., list[Section]]:
    return lambda sections: [*sections, *more]


def compress(tag: bytes, encode: Callable[[bytes], bytes] = frame) -> Callable[..., list[Section]]:
    def change(sections: list[Section]) -> list[Section]:
        return [
            Section(each.tag, each.raw, encode(each.raw)) if each.tag == tag else each
            for each in sections
        ]

    return change


LONG = "z" * 400
MAX_JSON_VALUES = 1 << 18


def many_values(count: int) -> Files:
    """Return a set whose META is a document of `count` values, most of them ones in a list.

    Compressed, so that half a megabyte is a few hundred bytes.
    """

    def values(item: Any) -> int:
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return 1 + sum(values(each) for each in inner)

    num_ones = count - values(tiny(note=[]).document())

    def encode(raw: bytes) -> bytes:
        begin = raw.index(b"[1,1,") + 1
        return frame_of_pairs(raw, begin, begin + 2 * num_ones - 2)

    return make(tiny(note=[1] * num_ones), compress(b"META", encode))


def meta_text(encode: Callable[[bytes], bytes], *, model: Model | None = None) -> Files:
    """Return a set whose META is other bytes."""

    def change(sections: list[Section]) -> list[Section]:
        return [
            Section(each.tag, encode(each.raw)) if each.tag == b"META" else each
            for each in sections
        ]

    return make(model or tiny(), change)


def meta_changed(edit: Callable[[dict[str, Any]], Any], *, experts: int = 1) -> Files:
    def encode(raw: bytes) -> bytes:
        document = json.loads(raw)
        edit(document)
        return spell(document)

    return meta_text(encode, model=tiny(experts))


def dense_text(text: bytes, data: bytes = b"abc", *, length: int | None = None) -> Files:
    """Return a set with this safetensors header, pinned by META unless its length is a lie."""
    image = struct.pack("<Q", len(text) if length is None else length) + text + data

    def change(sections: list[Section]) -> list[Section]:
        pin = {
            "sha256": hashlib.sha256(image[: 8 + len(text)]).hexdigest(),
            "size": 8 + len(text),
        }
        raws = {each.tag: each.raw for each in sections}
        raws[b"META"] = spell(json.loads(raws[b"META"]) | {"dense_header": pin})
        raws[b"DENS"] = image
        return [Section(each.tag, raws[each.tag]) for each in sections]

    return make(tiny(), change)


def sections_text(*tags: bytes) -> Files:
    """Return a one-shard set with these sections, whatever they are."""
    note = Section(b"prov", b"note")

    def change(sections: list[Section]) -> list[Section]:
        known = {each.tag: each for each in sections}
        return [known.get(tag, Section(tag, note.raw)) for tag in tags]

    return make(tiny(), change)


def manifest_changed(edit: Callable[[dict[str, Any]], Any], model: Model | None = None) -> Files:
    files = make(model or tiny())
    document = json.loads(files["kexp.json"])
    edit(document)
    files["kexp.json"] = bytearray(spell(document))
    return files


def with_files(files: Files, **changes: Any) -> Files:
    """Return `files` with some replaced (bytes) or removed (None); `_` in a key is a dot."""
    out = dict(files)
    for key, data in changes.items():
        name = key.replace("_", ".")
        if data is None:
            del out[name]
        else:
            out[name] = bytearray(data)
    return out


def damaged(model: Model, place_of: Callable[[bytearray], int], value: int = 1) -> Files:
    """Return the set with bits of one byte flipped after everything was sealed."""
    files = make(model)
    data = files[sorted(name for name in files if name.endswith(".kexp"))[-1]]
    data[place_of(data)] ^= value
    return files


def start(tag: bytes, offset: int = 0) -> Callable[[bytearray], int]:
    return lambda data: table(data)[tag][2] + offset
