"""An index that does not fit its blocks, and blocks that do not fit their index."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

from changes import Case, Poke, changed, damaged, entry, inside, start
from models import PLAIN, sharded, tiny
from sets import Files, Section, make, seal, table


def index_cases() -> list[Case]:
    two = tiny(2)
    fields: list[tuple[str, Poke, str]] = [
        ("layer", inside(b"EXPT", 64, "<H", 4096), "E_INDEX"),
        ("layer-descends", inside(b"EXPT", 64, "<HH", 2, 0), "E_INDEX"),
        ("expert-skipped", inside(b"EXPT", 66, "<H", 2), "E_INDEX"),
        ("expert-twice", inside(b"EXPT", 66, "<H", 0), "E_INDEX"),
        ("expert-first", inside(b"EXPT", 2, "<H", 1), "E_INDEX"),
        ("layout", inside(b"EXPT", 4, "<H", 1), "E_INDEX"),
        ("flags", inside(b"EXPT", 6, "<H", 1), "E_INDEX"),
        ("reserved", inside(b"EXPT", 28, "<I", 1), "E_INDEX"),
        ("offset", inside(b"EXPT", 8, "<Q", 16384), "E_INDEX_EXTENT"),
        ("overlap", inside(b"EXPT", 72, "<Q", 32768), "E_INDEX_EXTENT"),
        ("beyond", inside(b"EXPT", 72, "<Q", 2**64 - 16384), "E_INDEX_EXTENT"),
        ("length", inside(b"EXPT", 16, "<Q", 32768), "E_INDEX_EXTENT"),
    ]
    cases = [
        Case(f"index-{name}", changed(two, each), f"EXPT: {name.replace('-', ' ')}", code)
        for name, each, code in fields
    ]

    def cut(length: int) -> Callable[..., list[Section]]:
        return lambda sections: [
            Section(each.tag, each.raw[:-length]) if each.tag == b"EXPT" else each
            for each in sections
        ]

    descending = sharded()
    descending.shards = [[2], [0]]
    return [
        *cases,
        Case("index-short", make(two, cut(64)), "an entry less than blocks", "E_INDEX_EXTENT"),
        Case("index-odd", odd_index(), "63 bytes", "E_INDEX"),
        Case(
            "layers-descend",
            make(descending),
            "layer 2 in the second shard, layer 0 in the third",
            "E_INDEX",
        ),
        Case(
            "blocks-root",
            changed(tiny(), entry(b"BLKS", 40, "<I", 1), blocks=False),
            "sha256 of BLKS does not follow from EXPT",
            "E_BLOCKS_ROOT",
            "full",
        ),
        Case(
            "block-crc",
            damaged(sharded(), start(b"BLKS", 7)),
            "a flipped bit in a weight",
            "E_BLOCK_CRC",
            "full",
        ),
        Case(
            "block-inner-padding",
            damaged(tiny(), start(b"BLKS", 4)),
            "a flipped bit between two parts",
            "E_BLOCK_CRC",
            "full",
        ),
        Case(
            "block-sealed-padding",
            inner_padding(),
            "bytes between two parts that are not zero, with right checksums",
            "E_PADDING",
            "full",
        ),
        Case(
            "block-padding",
            damaged(tiny(), start(b"BLKS", 16383)),
            "a flipped bit behind the payload",
            "E_PADDING",
            "full",
        ),
        Case(
            "block-sha256",
            block_sha256(),
            "another payload with its crc32 put right",
            "E_BLOCK_SHA256",
            "full",
        ),
    ]


def odd_index() -> Files:
    """An index of 63 bytes; the offset inside its one entry stays what it was."""
    files = make(tiny())
    data = files["model.kexp"]
    entry(b"EXPT", 16, "<QQ", 63, 63)(data)
    data[table(data)[b"EXPT"][2] + 63] = 0  # padding from here on
    seal(files, blocks=False)
    return files


def inner_padding() -> Files:
    files = make(tiny())
    data = files["model.kexp"]
    data[start(b"BLKS", 4)(data)] = 1
    payload = bytes(data[start(b"BLKS")(data) :][: PLAIN.payload])
    inside(b"EXPT", 24, "<I", zlib.crc32(payload))(data)
    inside(b"EXPT", 32, "32s", hashlib.sha256(payload).digest())(data)
    seal(files)
    return files


def block_sha256() -> Files:
    files = make(tiny())
    data = files["model.kexp"]
    data[start(b"BLKS")(data)] ^= 1
    payload = bytes(data[start(b"BLKS")(data) :][: PLAIN.payload])
    inside(b"EXPT", 24, "<I", zlib.crc32(payload))(data)
    seal(files)
    return files
