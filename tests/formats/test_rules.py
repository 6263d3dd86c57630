"""Every rule of the specification, broken one at a time with all checksums put right."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from containers import (
    Body,
    install,
    rebuild,
    reseal,
    reseal_header,
    section_bodies,
    section_bytes,
    section_entries,
)
from formats import KexpError, open_set, verify_full

Damage = Callable[[bytearray], None]


def poke(offset: int, layout: str, *values: Any, tag: str | None = None) -> Damage:
    """Overwrite a field; `offset` counts from the section `tag`, or from the file's start."""

    def damage(data: bytearray) -> None:
        base = 0 if tag is None else section_entries(data)[tag][1]
        struct.pack_into(layout, data, base + offset, *values)

    return damage


def entry(tag: str, offset: int, layout: str, *values: Any) -> Damage:
    """Overwrite a field of a section's table entry."""

    def damage(data: bytearray) -> None:
        struct.pack_into(layout, data, section_entries(data)[tag][0] + offset, *values)

    return damage


def cases(table: Sequence[tuple[str, Any, str]]) -> list[Any]:
    return [pytest.param(damage, code, id=name) for name, damage, code in table]


def opened_code(folder: Path) -> str:
    with pytest.raises(KexpError) as caught:
        open_set(folder).close()
    assert "\n" not in str(caught.value)
    return caught.value.code


SUPERBLOCK = [
    ("magic", poke(0, "B", 0x88), "E_MAGIC"),
    ("major", poke(8, "<H", 2), "E_VERSION"),
    ("header size", poke(12, "<I", 8192), "E_HEADER"),
    ("incompat bit 0", poke(16, "<Q", 1), "E_FEATURE"),
    ("incompat bit 63", poke(16, "<Q", 1 << 63), "E_FEATURE"),
    ("file size", poke(32, "<Q", 1 << 40), "E_FILE_SIZE"),
    ("block align", poke(40, "<I", 4096), "E_HEADER"),
    ("tensor align", poke(44, "<I", 64), "E_HEADER"),
    ("shard number", poke(48, "<I", 1), "E_HEADER"),
    ("no shards", poke(52, "<I", 0), "E_HEADER"),
    ("too many shards", poke(52, "<I", 4097), "E_HEADER"),
    ("two shards", poke(52, "<I", 2), "E_SHARD_NAME"),
    ("section offset", poke(56, "<Q", 8192), "E_HEADER"),
    ("no sections", poke(64, "<I", 0), "E_HEADER"),
    ("too many sections", poke(64, "<I", 65), "E_HEADER"),
    ("table crc", poke(68, "<I", 0), "E_TABLE_CRC"),
    ("set root", poke(72, "<Q", 0), "E_SET_ROOT"),
    ("shard root", poke(104, "<Q", 0), "E_SHARD_ROOT"),
    ("zeros", poke(136, "B", 1), "E_PADDING"),
    ("last zero", poke(4091, "B", 1), "E_PADDING"),
]


@pytest.mark.parametrize(("damage", "code"), cases(SUPERBLOCK))
def test_superblock(folder: Path, damage: Damage, code: str) -> None:
    manifest = (folder / "kexp.json").read_bytes()
    data = bytearray((folder / "model.kexp").read_bytes())
    damage(data)
    reseal_header(data)
    install(folder, data)
    (folder / "kexp.json").write_bytes(manifest)
    assert opened_code(folder) == code


def test_the_unknown_feature_is_named(folder: Path) -> None:
    data = bytearray((folder / "model.kexp").read_bytes())
    struct.pack_into("<Q", data, 16, 1 << 5 | 1 << 40)
    reseal(data)
    install(folder, data)
    with pytest.raises(KexpError, match=r"feature bit 5, 40.*E_FEATURE"):
        open_set(folder)


def test_later_minor_versions_and_compatible_features_are_read(folder: Path) -> None:
    data = bytearray((folder / "model.kexp").read_bytes())
    struct.pack_into("<H", data, 10, 7)
    struct.pack_into("<Q", data, 24, 1 << 63 | 1)
    reseal(data)
    install(folder, data)
    with open_set(folder) as opened:
        assert opened.shards[0].superblock.version_minor == 7


TABLE = [
    ("tag not letters", entry("META", 0, "4s", b"ME1A"), "E_SECTION_TAG"),
    ("tag not ASCII", entry("META", 0, "4s", b"ME\xffA"), "E_SECTION_TAG"),
    ("unknown critical tag", entry("META", 0, "4s", b"Zzzz"), "E_SECTION_TAG"),
    ("tag twice", entry("LAYT", 0, "4s", b"META"), "E_SECTION_SET"),
    ("ancillary in front", entry("META", 0, "4s", b"meta"), "E_SECTION_SET"),
    ("unknown codec", entry("META", 4, "<I", 2), "E_SECTION_CODEC"),
    ("compressed index", entry("EXPT", 4, "<I", 1), "E_SECTION_CODEC"),
    ("compressed blocks", entry("BLKS", 4, "<I", 1), "E_SECTION_CODEC"),
    ("flag above the codec", entry("META", 4, "<I", 1 << 31), "E_SECTION_CODEC"),
    ("offset in the table", entry("META", 8, "<Q", 4096), "E_SECTION_EXTENT"),
    ("offset not tight", entry("META", 8, "<Q", 8192), "E_SECTION_EXTENT"),
    ("offset overlapping", entry("LAYT", 8, "<Q", 4608), "E_SECTION_EXTENT"),
    ("offset beyond", entry("BLKS", 8, "<Q", 1 << 63), "E_SECTION_EXTENT"),
    ("empty", entry("META", 16, "<QQ", 0, 0), "E_SECTION_EXTENT"),
    ("raw longer", entry("META", 24, "<Q", 1 << 20), "E_SECTION_EXTENT"),
    ("blocks beyond the file", entry("BLKS", 16, "<QQ", 1 << 40, 1 << 40), "E_SECTION_EXTENT"),
    ("blocks that wrap", entry("BLKS", 16, "<QQ", 2**64 - 1, 2**64 - 1), "E_SECTION_EXTENT"),
    ("blocks too short", entry("BLKS", 16, "<QQ", 16384, 16384), "E_SECTION_EXTENT"),
    ("reserved", entry("META", 36, "<I", 1), "E_PADDING"),
    ("reserved at the end", entry("META", 72, "<Q", 1), "E_PADDING"),
    ("blocks with a crc", entry("BLKS", 32, "<I", 1), "E_SECTION_CRC"),
    ("wrong crc", entry("META", 32, "<I", 1), "E_SECTION_CRC"),
    ("wrong sha256", entry("META", 40, "<I", 1), "E_SECTION_SHA256"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "code"), cases(TABLE))
def test_section_table(folder: Path, damage: Damage, code: str) -> None:
    data = bytearray((folder / "model.kexp").read_bytes())
    damage(data)
    reseal(data, sections=False)
    install(folder, data)
    assert opened_code(folder) == code


def test_padding_between_sections(folder: Path) -> None:
    pristine = (folder / "model.kexp").read_bytes()
    for _, offset, stored in section_entries(pristine).values():
        if offset + stored == len(pristine):
            continue
        data = bytearray(pristine)
        data[offset + stored] = 1
        install(folder, data)
        assert opened_code(folder) == "E_PADDING"


def test_ancillary_sections_leave_the_identity_alone(folder: Path) -> None:
    data = (folder / "model.kexp").read_bytes()
    note = Body("prov", b"made by hand")
    changed = rebuild(data, [*section_bodies(data), note, Body("hotl", b"1")])
    assert changed[72:136] == data[72:136]
    install(folder, changed)
    with open_set(folder) as opened:
        section = opened.shards[0].section(b"prov")
        assert opened.shards[0].mmap[section.offset_bytes : section.end_bytes] == note.raw
    assert verify_full(folder).ok


def test_a_damaged_ancillary_section_is_found_by_full_verification(folder: Path) -> None:
    data = (folder / "model.kexp").read_bytes()
    changed = rebuild(data, [*section_bodies(data), Body("prov", b"made by hand")])
    changed[-1] ^= 1
    install(folder, changed)
    assert [finding.code for finding in verify_full(folder).findings] == ["E_SECTION_CRC"]


@pytest.mark.parametrize(
    "tags",
    [
        ["META", "LAYT", "EXPT", "DENS", "BLKS", "prov", "prov"],
        ["META", "LAYT", "EXPT", "DENS", "prov", "BLKS"],
        ["LAYT", "META", "EXPT", "DENS", "BLKS"],
        ["META", "LAYT", "EXPT", "DENS"],
        ["META", "LAYT", "LAYT", "EXPT", "DENS", "BLKS"],
        ["LAYT", "EXPT", "BLKS"],
        ["META", "LAYT", "DENS"],
    ],
)
def test_sections_that_do_not_belong(folder: Path, tags: list[str]) -> None:
    data = (folder / "model.kexp").read_bytes()
    known = {body.tag: body for body in section_bodies(data)}
    if "DENS" not in tags:  # keep the blocks where the index has them
        known["EXPT"] = Body("EXPT", known["EXPT"].raw + bytes(16384))
    bodies = [known.get(tag, Body(tag, b"note" * 20)) for tag in tags]
    install(folder, rebuild(data, bodies))
    assert opened_code(folder) == "E_SECTION_SET"


def change_meta(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Replace META by what `change` returns, or by the document it changed."""
    data = (folder / "model.kexp").read_bytes()
    document = json.loads(section_bytes(data, "META"))
    text = change(document)
    if not isinstance(text, bytes):
        text = spell(document)
    bodies = [Body("META", text) if body.tag == "META" else body for body in section_bodies(data)]
    install(folder, rebuild(data, bodies))


def spell(document: Any, *, sort_keys: bool = True) -> bytes:
    text = json.dumps(
        document, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def backwards(meta: dict[str, Any]) -> bytes:
    return spell(dict(reversed(sorted(meta.items()))), sort_keys=False)


BAD_DIGEST = {"model.safetensors": {"sha256": "", "size": 1}}
META: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("not an object", lambda meta: b"[]", "E_META"),
    ("not JSON", lambda meta: b"{", "E_JSON"),
    ("not UTF-8", lambda meta: b'{"a":"\xff"}', "E_JSON"),
    ("byte order mark", lambda meta: b'\xef\xbb\xbf{"a":1}', "E_JSON"),
    ("spaces", lambda meta: json.dumps(meta, sort_keys=True).encode(), "E_JSON_CANONICAL"),
    ("unsorted", backwards, "E_JSON_CANONICAL"),
    ("escaped", lambda meta: b'{"\\u0061":1}', "E_JSON_CANONICAL"),
    ("minus zero", lambda meta: b'{"a":-0}', "E_JSON_CANONICAL"),
    ("duplicate key", lambda meta: b'{"a":1,"a":1}', "E_JSON_DUPLICATE_KEY"),
    ("fraction", lambda meta: meta.update(alpha=1.5), "E_JSON_VALUE"),
    ("exponent", lambda meta: b'{"a":1e3}', "E_JSON_VALUE"),
    ("NaN", lambda meta: b'{"a":NaN}', "E_JSON"),
    ("large integer", lambda meta: meta.update(alpha=2**53), "E_JSON_VALUE"),
    ("huge integer", lambda meta: b'{"a":' + b"9" * 4000 + b"}", "E_JSON_VALUE"),
    ("long string", lambda meta: meta.update(alpha="x" * 4097), "E_JSON_VALUE"),
    ("lone surrogate", lambda meta: b'{"a":"\\ud800"}', "E_JSON_VALUE"),
    ("deep", lambda meta: b'{"a":' + b"[" * 16 + b"]" * 16 + b"}", "E_JSON_VALUE"),
    ("deeper than the stack", lambda meta: b"[" * 8000, "E_JSON_VALUE"),
    ("capital key", lambda meta: meta.update(Alpha=1), "E_META"),
    ("no layers", lambda meta: meta.update(layers=[]), "E_META"),
    ("missing key", lambda meta: meta.pop("top_k"), "E_META"),
    ("wrong type", lambda meta: meta.update(hidden_size="64"), "E_META"),
    ("bool for integer", lambda meta: meta.update(hidden_size=True), "E_META"),
    ("top_k too large", lambda meta: meta.update(top_k=3), "E_META"),
    ("top_k zero", lambda meta: meta.update(top_k=0), "E_META"),
    ("layer is no object", lambda meta: meta["layers"].append(7), "E_META"),
    ("layer lacks prefix", lambda meta: meta["layers"][0].pop("prefix"), "E_META"),
    ("layers descend", lambda meta: meta["layers"].reverse(), "E_META"),
    ("layer number", lambda meta: meta["layers"][2].update(layer=4096), "E_META"),
    ("one layer less", lambda meta: meta["layers"].pop(), "E_META"),
    ("another layer", lambda meta: meta["layers"][2].update(layer=6), "E_META"),
    ("another count", lambda meta: meta["layers"][0].update(num_experts=4), "E_META"),
    ("too many experts", lambda meta: meta["layers"][0].update(num_experts=16385), "E_META"),
    ("another layout", lambda meta: meta["layers"][0].update(layout=1), "E_META"),
    ("layout beyond", lambda meta: meta["layers"][0].update(layout=9), "E_META"),
    ("pin of another header", lambda meta: meta["dense_header"].update(size=8), "E_DENSE_SHA256"),
    ("pin lacks size", lambda meta: meta["dense_header"].pop("size"), "E_META"),
    ("pin that is no digest", lambda meta: meta["dense_header"].update(sha256="0"), "E_META"),
    ("hidden_size zero", lambda meta: meta.update(hidden_size=0), "E_META"),
    ("revision", lambda meta: meta["source"].update(revision=1), "E_META"),
    ("source files", lambda meta: meta["source"].update(files=[]), "E_META"),
    ("source size", lambda meta: meta["source"]["files"].update(a={"size": -1}), "E_META"),
    ("source digest", lambda meta: meta["source"].update(files=BAD_DIGEST), "E_META"),
    ("tensor names", lambda meta: meta.update(tensors={"a": ["b", 1]}), "E_META"),
    ("pin of wrong type", lambda meta: meta["dense_header"].update(sha256=1), "E_META"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code"), cases(META))
def test_meta(folder: Path, change: Callable[[dict[str, Any]], Any], code: str) -> None:
    change_meta(folder, change)
    assert opened_code(folder) == code


def test_unknown_keys_of_meta_are_ignored(folder: Path) -> None:
    later = [1, {"x": None}, "ü\n\x7f"]
    change_meta(folder, lambda meta: meta.update({"later.key_1-a": later}))
    with open_set(folder) as opened:
        assert opened.meta["later.key_1-a"] == later


# The first layout of the test set is affine gate, up, down; its first part is gate.weight.
LAYOUT, PART = 16, 16 + 32
LAYT = [
    ("count 0", poke(0, "<I", 0, tag="LAYT"), "E_LAYOUT"),
    ("count too large", poke(0, "<I", 4097, tag="LAYT"), "E_LAYOUT"),
    ("count one more", poke(0, "<I", 3, tag="LAYT"), "E_LAYOUT"),
    ("count one less", poke(0, "<I", 1, tag="LAYT"), "E_LAYOUT"),
    ("reserved", poke(4, "B", 1, tag="LAYT"), "E_LAYOUT"),
    ("id", poke(LAYOUT, "<H", 1, tag="LAYT"), "E_LAYOUT"),
    ("no parts", poke(LAYOUT + 2, "<H", 0, tag="LAYT"), "E_LAYOUT"),
    ("too many parts", poke(LAYOUT + 2, "<H", 65, tag="LAYT"), "E_LAYOUT"),
    ("layout reserved", poke(LAYOUT + 4, "<I", 1, tag="LAYT"), "E_LAYOUT"),
    ("payload", poke(LAYOUT + 8, "<Q", 1, tag="LAYT"), "E_LAYOUT"),
    ("block", poke(LAYOUT + 16, "<Q", 1 << 63, tag="LAYT"), "E_LAYOUT"),
    ("projection", poke(PART, "B", 7, tag="LAYT"), "E_LAYOUT"),
    ("projection out of order", poke(PART, "B", 2, tag="LAYT"), "E_LAYOUT"),
    ("role", poke(PART + 1, "B", 0, tag="LAYT"), "E_LAYOUT"),
    ("role twice", poke(PART + 33, "B", 1, tag="LAYT"), "E_LAYOUT"),
    ("dtype", poke(PART + 2, "B", 99, tag="LAYT"), "E_DTYPE"),
    ("dtype of another length", poke(PART + 2, "B", 10, tag="LAYT"), "E_LAYOUT"),
    ("dtype of the same length", poke(PART + 2, "B", 12, tag="LAYT"), "E_LAYOUT"),
    ("mode", poke(PART + 3, "B", 0, tag="LAYT"), "E_LAYOUT"),
    ("mode none with bits", poke(PART + 3, "B", 1, tag="LAYT"), "E_LAYOUT"),
    ("another mode", poke(PART + 3, "B", 3, tag="LAYT"), "E_LAYOUT"),
    ("ndim", poke(PART + 4, "B", 3, tag="LAYT"), "E_LAYOUT"),
    ("ndim too small", poke(PART + 4, "B", 1, tag="LAYT"), "E_LAYOUT"),
    ("bits", poke(PART + 5, "B", 7, tag="LAYT"), "E_LAYOUT"),
    ("bits unlike its scales'", poke(PART + 5, "B", 8, tag="LAYT"), "E_LAYOUT"),
    ("group size", poke(PART + 6, "<H", 48, tag="LAYT"), "E_LAYOUT"),
    ("rows 0", poke(PART + 8, "<I", 0, tag="LAYT"), "E_LAYOUT"),
    ("rows and cols exchanged", poke(PART + 8, "<II", 8, 96, tag="LAYT"), "E_LAYOUT"),
    ("huge", poke(PART + 8, "<II", 2**32 - 1, 2**32 - 1, tag="LAYT"), "E_LAYOUT"),
    ("offset", poke(PART + 16, "<Q", 128, tag="LAYT"), "E_LAYOUT"),
    ("offset that wraps", poke(PART + 16, "<Q", 2**64 - 128, tag="LAYT"), "E_LAYOUT"),
    ("length", poke(PART + 24, "<Q", 1, tag="LAYT"), "E_LAYOUT"),
]  # fmt: skip

EXPT = [
    ("layer too large", poke(64 * 6, "<H", 4096, tag="EXPT"), "E_INDEX"),
    ("layers descend", poke(64 * 6, "<HH64xH", 0, 0, 0, tag="EXPT"), "E_INDEX"),
    ("layer of one expert", poke(64 * 1, "<H", 2, tag="EXPT"), "E_INDEX"),
    ("expert skipped", poke(64 * 1 + 2, "<H", 2, tag="EXPT"), "E_INDEX"),
    ("expert twice", poke(64 * 1 + 2, "<H", 0, tag="EXPT"), "E_INDEX"),
    ("expert too large", poke(64 * 1 + 2, "<H", 16384, tag="EXPT"), "E_INDEX"),
    ("first expert", poke(2, "<H", 1, tag="EXPT"), "E_INDEX"),
    ("layout beyond", poke(4, "<H", 2, tag="EXPT"), "E_INDEX"),
    ("two layouts in a layer", poke(64 * 1 + 4, "<H", 1, tag="EXPT"), "E_INDEX"),
    ("flags", poke(6, "<H", 1, tag="EXPT"), "E_INDEX"),
    ("offset", poke(8, "<Q", 16384, tag="EXPT"), "E_INDEX_EXTENT"),
    ("offset overlapping", poke(64 * 3 + 8, "<Q", 32768, tag="EXPT"), "E_INDEX_EXTENT"),
    ("offset beyond", poke(64 * 7 + 8, "<Q", 2**64 - 16384, tag="EXPT"), "E_INDEX_EXTENT"),
    ("length", poke(16, "<Q", 32768, tag="EXPT"), "E_INDEX_EXTENT"),
    ("length 0", poke(16, "<Q", 0, tag="EXPT"), "E_INDEX_EXTENT"),
    ("reserved", poke(28, "<I", 1, tag="EXPT"), "E_INDEX"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "code"), cases(LAYT + EXPT))
def test_layouts_and_index(folder: Path, damage: Damage, code: str) -> None:
    data = bytearray((folder / "model.kexp").read_bytes())
    damage(data)
    reseal(data)
    install(folder, data)
    assert opened_code(folder) == code


@pytest.mark.parametrize(("cut", "code"), [(64, "E_INDEX_EXTENT"), (1, "E_INDEX")])
def test_an_index_shorter_than_its_blocks(folder: Path, cut: int, code: str) -> None:
    data = (folder / "model.kexp").read_bytes()
    bodies = [
        Body("EXPT", body.raw[:-cut]) if body.tag == "EXPT" else body
        for body in section_bodies(data)
    ]
    install(folder, rebuild(data, bodies))
    assert opened_code(folder) == code


def compressed(body: Body, *, level: int = 19, **options: Any) -> Body:
    return Body(
        body.tag, body.raw, zstandard.ZstdCompressor(level=level, **options).compress(body.raw)
    )


def test_compressed_metadata_is_read_and_is_the_same_model(folder: Path) -> None:
    data = (folder / "model.kexp").read_bytes()
    bodies = [
        compressed(body) if body.tag in ("META", "LAYT") else body for body in section_bodies(data)
    ]
    changed = rebuild(data, [*bodies, compressed(Body("prov", b"again and " * 100))])
    assert changed[72:136] == data[72:136]
    install(folder, changed)
    assert verify_full(folder).ok


def frame_window(raw: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    # Streaming without a size hint beforehand is what makes the frame carry its window.
    chunks = compressor.compressobj(size=len(raw))
    return chunks.compress(raw) + chunks.flush()


def without_size(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(raw)


SKIPPABLE = b"\x50\x2a\x4d\x18\0\0\0\0"
ZSTD: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("not zstd", lambda raw: b"x" * 40, "E_SECTION_CODEC"),
    ("no content size", without_size, "E_SECTION_CODEC"),
    ("another content size", lambda raw: zstandard.compress(raw[:-1]), "E_SECTION_CODEC"),
    (
        "two frames",
        lambda raw: zstandard.compress(raw) + zstandard.compress(b""),
        "E_SECTION_CODEC",
    ),
    ("bytes behind", lambda raw: zstandard.compress(raw) + b"\0", "E_SECTION_CODEC"),
    ("truncated", lambda raw: zstandard.compress(raw)[:-3], "E_SECTION_CODEC"),
    ("skippable frame", lambda raw: SKIPPABLE + zstandard.compress(raw), "E_SECTION_CODEC"),
    ("other content", lambda raw: zstandard.compress(raw[:-1] + b" "), "E_SECTION_SHA256"),
    ("does not shrink", lambda raw: raw + b"x", "E_SECTION_EXTENT"),
]


@pytest.mark.parametrize(("encode", "code"), cases(ZSTD))
def test_compressed_metadata(folder: Path, encode: Callable[[bytes], bytes], code: str) -> None:
    data = (folder / "model.kexp").read_bytes()
    bodies = [
        Body("META", body.raw, encode(body.raw)) if body.tag == "META" else body
        for body in section_bodies(data)
    ]
    install(folder, rebuild(data, bodies))
    assert opened_code(folder) == code


def test_a_compressed_section_that_announces_too_much(folder: Path) -> None:
    data = bytearray((folder / "model.kexp").read_bytes())
    bodies = [compressed(body) if body.tag == "META" else body for body in section_bodies(data)]
    changed = rebuild(data, bodies)
    at = section_entries(changed)["META"][0]
    struct.pack_into("<Q", changed, at + 24, (16 << 20) + 1)
    reseal(changed, sections=False)
    install(folder, changed)
    assert opened_code(folder) == "E_LIMIT"


def test_a_window_above_the_limit(folder: Path) -> None:
    raw = b"[" + b"1," * (5 << 20) + b"1]"
    data = (folder / "model.kexp").read_bytes()
    bodies = [
        Body("META", raw, frame_window(raw)) if body.tag == "META" else body
        for body in section_bodies(data)
    ]
    install(folder, rebuild(data, bodies))
    with pytest.raises(KexpError, match=r"window of \d+ bytes.*E_SECTION_CODEC"):
        open_set(folder)
