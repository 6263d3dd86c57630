"""One fault gives one code, and nothing that only follows from it."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance.damage import Container, change_manifest
from containers import LAYERS, reseal, reseal_header, write_set
from specs.validate_kexp import validate

Change = Callable[[Container], object]
# What a change breaks besides: the first of two shards has other sections.
FOLLOWS = {"another_number": {"E_SECTION_SET"}}
FOLDER_CASES: list[Any] = []
SHARD_CASES: list[Any] = []


def folder_case(code: str) -> Callable[[Callable[[Path], object]], object]:
    def register(change: Callable[[Path], object]) -> object:
        FOLDER_CASES.append(pytest.param(change, code, id=f"{code}-{change.__name__}"))
        return change

    return register


def shard_case(code: str) -> Callable[[Change], object]:
    def register(change: Change) -> object:
        SHARD_CASES.append(pytest.param(change, code, id=f"{code}-{change.__name__}"))
        return change

    return register


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "set"
    write_set(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "set")


def codes(folder: Path) -> set[str]:
    return {finding.code for finding in validate(folder).findings}


# --- Files and kexp.json ---


@folder_case("E_FILE_MISSING")
def no_manifest(folder: Path) -> None:
    (folder / "kexp.json").unlink()


@folder_case("E_FILE_MISSING")
def no_shard(folder: Path) -> None:
    (folder / "model.kexp").unlink()


@folder_case("E_FILE_MISSING")
def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@folder_case("E_IO")
def folder_for_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


@folder_case("E_FILE_SIZE")
def cut_short(folder: Path) -> None:
    path = folder / "model.kexp"
    path.write_bytes(path.read_bytes()[:-5000])


@folder_case("E_FILE_SIZE")
def cut_in_the_superblock(folder: Path) -> None:
    path = folder / "model.kexp"
    path.write_bytes(path.read_bytes()[:4095])


@folder_case("E_FILE_SIZE")
def cut_in_the_table(folder: Path) -> None:
    path = folder / "model.kexp"
    path.write_bytes(path.read_bytes()[:4200])


@folder_case("E_FILE_SIZE")
def grown(folder: Path) -> None:
    with (folder / "model.kexp").open("ab") as file:
        file.write(bytes(7))


@folder_case("E_FILE_SIZE")
def longer_config(folder: Path) -> None:
    with (folder / "config.json").open("a") as file:
        file.write("\n")


@folder_case("E_FILE_SHA256")
def changed_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(path.read_bytes().replace(b"1e6", b"1e7"))


def put_config(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    record = {"name": "config.json", "sha256": hashlib.sha256(text).hexdigest(), "size": len(text)}
    change_manifest(folder, lambda manifest: manifest.update(files=[record]))


@folder_case("E_CONFIG")
def config_is_a_list(folder: Path) -> None:
    put_config(folder, b"[1]")


@folder_case("E_CONFIG")
def config_is_no_json(folder: Path) -> None:
    put_config(folder, b"{")


@folder_case("E_CONFIG")
def config_is_deep(folder: Path) -> None:
    put_config(folder, b'{"a":' + b"[" * 64 + b"]" * 64 + b"}")


@folder_case("E_LIMIT")
def config_is_long(folder: Path) -> None:
    put_config(folder, b"{" + b" " * (16 << 20) + b"}")


@folder_case("E_LIMIT")
def manifest_is_long(folder: Path) -> None:
    with (folder / "kexp.json").open("ab") as file:
        file.write(b" " * (16 << 20))


@folder_case("E_MANIFEST")
def unknown_key(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(more=1))


@folder_case("E_MANIFEST")
def no_set_root(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.pop("set_root"))


@folder_case("E_MANIFEST")
def version_is_true(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(version=True))


@folder_case("E_VERSION")
def version_2(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(version=2, other=0))


@folder_case("E_MANIFEST")
def name_with_a_slash(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest["files"][0].update(name="../config.json"))


@folder_case("E_MANIFEST")
def file_twice(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(files=manifest["files"] * 2))


@folder_case("E_MANIFEST")
def readme_listed(folder: Path) -> None:
    (folder / "config.json").rename(folder / "README.md")
    change_manifest(folder, lambda manifest: manifest["files"][0].update(name="README.md"))


@folder_case("E_MANIFEST")
def shard_misnamed(folder: Path) -> None:
    (folder / "model.kexp").rename(folder / "weights.kexp")
    change_manifest(folder, lambda manifest: manifest["shards"][0].update(name="weights.kexp"))


@folder_case("E_MANIFEST")
def shards_is_an_object(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(shards={}))


@folder_case("E_JSON_CANONICAL")
def manifest_is_indented(folder: Path) -> None:
    path = folder / "kexp.json"
    path.write_bytes(path.read_bytes() + b"\n")


@folder_case("E_SHARD_EXTRA")
def left_over(folder: Path) -> None:
    (folder / "model-00001-of-00002.kexp").write_bytes(b"")


@folder_case("E_SHARD_ROOT")
def manifest_has_another_shard_root(folder: Path) -> None:
    change_manifest(folder, lambda m: m["shards"][0].update(shard_root="0" * 64))


@folder_case("E_SET_ROOT")
def manifest_has_another_set_root(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(set_root="0" * 64))


@pytest.mark.parametrize(("change", "code"), FOLDER_CASES)
def test_files(folder: Path, change: Callable[[Path], object], code: str) -> None:
    change(folder)
    assert codes(folder) == {code}


# --- Superblock ---


@shard_case("E_MAGIC")
def text_mode(shard: Container) -> None:
    shard.data[5:7] = b"\n\n"


@shard_case("E_VERSION")
def major_2(shard: Container) -> None:
    shard.put("<H", 8, 2)


@shard_case("E_HEADER_CRC")
def header_bit(shard: Container) -> None:
    shard.data[24] ^= 1


@shard_case("E_FEATURE")
def feature_bit(shard: Container) -> None:
    shard.put("<Q", 16, 1 << 63)
    reseal(shard.data)


for _name, _form, _at, _value in (
    ("header_size", "<I", 12, 8192),
    ("block_align", "<I", 40, 4096),
    ("tensor_align", "<I", 44, 64),
    ("section_off", "<Q", 56, 8192),
    ("section_count", "<I", 64, 65),
    ("no_sections", "<I", 64, 0),
    ("shard_count", "<I", 52, 0),
):

    def _put(shard: Container, form: str = _form, at: int = _at, value: int = _value) -> None:
        shard.put(form, at, value)
        if at != 64:
            reseal(shard.data)
        reseal_header(shard.data)

    _put.__name__ = _name
    shard_case("E_HEADER")(_put)


@shard_case("E_PADDING")
def superblock_zeros(shard: Container) -> None:
    shard.data[4000] = 1
    reseal_header(shard.data)


@shard_case("E_SHARD_NAME")
def another_number(shard: Container) -> None:
    shard.put("<I", 52, 2)
    reseal(shard.data)


@shard_case("E_SHARD_ROOT")
def wrong_shard_root(shard: Container) -> None:
    shard.data[104] ^= 1
    root = hashlib.sha256(b"\0" + bytes(shard.data[104:136])).digest()
    shard.data[72:104] = root
    reseal_header(shard.data)


@shard_case("E_SET_ROOT")
def wrong_set_root(shard: Container) -> None:
    shard.data[72] ^= 1
    reseal_header(shard.data)


# --- Section table ---


@shard_case("E_TABLE_CRC")
def table_crc(shard: Container) -> None:
    shard.put("<I", 68, 0)
    reseal_header(shard.data)


@shard_case("E_PADDING")
def reserved_of_a_row(shard: Container) -> None:
    shard.put("<I", shard.row("META") + 36, 1)
    shard.seal()


@shard_case("E_PADDING")
def between_sections(shard: Container) -> None:
    shard.data[shard.at("DENS") - 1] = 1


@shard_case("E_SECTION_TAG")
def unknown_critical(shard: Container) -> None:
    shard.append("XTRA", b"1")
    shard.seal()


@shard_case("E_SECTION_TAG")
def tag_with_a_digit(shard: Container) -> None:
    shard.append("not1", b"1")
    shard.seal()


@shard_case("E_SECTION_SET")
def twice(shard: Container) -> None:
    shard.append("prov", b"1")
    shard.append("prov", b"1")
    shard.seal()


@shard_case("E_SECTION_CODEC")
def codec_2(shard: Container) -> None:
    shard.append("prov", b"1")
    shard.put("<I", shard.row("prov") + 4, 2)
    shard.seal()


@shard_case("E_SECTION_CODEC")
def not_a_frame(shard: Container) -> None:
    shard.append("prov", b"1" * 100, stored=b"2" * 50)


@shard_case("E_SECTION_EXTENT")
def raw_with_two_lengths(shard: Container) -> None:
    shard.append("prov", b"12")
    shard.put("<Q", shard.row("prov") + 24, 1)
    shard.seal()


@shard_case("E_SECTION_EXTENT")
def empty(shard: Container) -> None:
    shard.append("prov", b"1")
    shard.append("hotl", b"")
    shard.seal()


@shard_case("E_SECTION_EXTENT")
def misplaced(shard: Container) -> None:
    shard.put("<Q", shard.row("LAYT") + 8, shard.at("LAYT") + 128)
    reseal(shard.data, sections=False)


@shard_case("E_LIMIT")
def bomb(shard: Container) -> None:
    shard.append("prov", b"1" * ((16 << 20) + 1), stored=b"\x28\xb5\x2f\xfd")


@shard_case("E_SECTION_CRC")
def crc_of_blocks(shard: Container) -> None:
    shard.put("<I", shard.row("BLKS") + 32, 1)
    reseal(shard.data, sections=False)


@shard_case("E_SECTION_CRC")
def dense_bit(shard: Container) -> None:
    row = shard.row("DENS")
    shard.data[shard.at("DENS") + shard.get("<Q", row + 16) - 1] ^= 1


@shard_case("E_SECTION_SHA256")
def sha256_of_dense(shard: Container) -> None:
    shard.data[shard.row("DENS") + 40] ^= 1
    reseal(shard.data, sections=False)


@shard_case("E_SECTION_CRC")
def ancillary_bit(shard: Container) -> None:
    shard.append("prov", b"{}")
    shard.data[shard.at("prov")] ^= 1


@shard_case("E_BLOCKS_ROOT")
def blocks_root(shard: Container) -> None:
    shard.data[shard.row("BLKS") + 40] ^= 1
    reseal(shard.data, sections=False)


# --- META ---


def meta_text(name: str, code: str, change: Callable[[bytes], bytes]) -> None:
    def case(shard: Container) -> None:
        shard.replace("META", change(shard.raw("META")))
        shard.seal()

    case.__name__ = name
    shard_case(code)(case)


meta_text("not_utf8", "E_JSON", lambda text: text.replace(b"mixtral", b"mixtra\xff"))
meta_text("byte_order_mark", "E_JSON", lambda text: b"\xef\xbb\xbf" + text)
meta_text("nan", "E_JSON", lambda text: text.replace(b'"silu"', b"NaN"))
meta_text("raw_newline_in_string", "E_JSON", lambda text: text.replace(b"silu", b"si\nlu"))
meta_text("trailing_comma", "E_JSON", lambda text: text[:-1] + b",}")
meta_text("leading_zero", "E_JSON", lambda text: text.replace(b":64,", b":064,", 1))
meta_text("two_values", "E_JSON", lambda text: text + b"1")
meta_text("key_twice", "E_JSON_DUPLICATE_KEY", lambda text: b'{"a":1,"a":1,' + text[1:])
meta_text("escaped_key_twice", "E_JSON_DUPLICATE_KEY", lambda text: b'{"a":1,"a":2,' + text[1:])
meta_text("fraction", "E_JSON_VALUE", lambda text: b'{"a":1.0,' + text[1:])
meta_text("exponent", "E_JSON_VALUE", lambda text: b'{"a":1e3,' + text[1:])
meta_text("integer", "E_JSON_VALUE", lambda text: b'{"a":-9007199254740992,' + text[1:])
meta_text("long_integer", "E_JSON_VALUE", lambda text: b'{"a":1' + b"0" * 5000 + b"," + text[1:])
meta_text("depth", "E_JSON_VALUE", lambda text: b'{"a":' + b"[" * 16 + b"]" * 16 + b"," + text[1:])
meta_text("string", "E_JSON_VALUE", lambda text: b'{"a":"' + b"x" * 4097 + b'",' + text[1:])
meta_text("surrogate", "E_JSON_VALUE", lambda text: b'{"a":"\\ud800",' + text[1:])
meta_text("space", "E_JSON_CANONICAL", lambda text: text.replace(b":", b": ", 1))
meta_text("order", "E_JSON_CANONICAL", lambda text: b'{"zz":1,' + text[1:])
meta_text("minus_zero", "E_JSON_CANONICAL", lambda text: b'{"a":-0,' + text[1:])
meta_text("slash", "E_JSON_CANONICAL", lambda text: b'{"a":"\\/",' + text[1:])
meta_text("pair", "E_JSON_CANONICAL", lambda text: b'{"a":"\\ud83d\\ude00",' + text[1:])
meta_text("upper_escape", "E_JSON_CANONICAL", lambda text: b'{"a":"\\u001F",' + text[1:])
meta_text("long_escape", "E_JSON_CANONICAL", lambda text: b'{"a":"\\u000a",' + text[1:])
meta_text("a_list", "E_META", lambda _: b"[]")


def meta_value(name: str, change: Callable[[dict[str, Any]], object]) -> None:
    def case(shard: Container) -> None:
        shard.change_meta(change)
        shard.seal()

    case.__name__ = name
    shard_case("E_META")(case)


meta_value("key_in_upper_case", lambda meta: meta.update(A=1))
meta_value("missing", lambda meta: meta.pop("activation"))
meta_value("wrong_type", lambda meta: meta.update(architecture=3))
meta_value("true_for_an_integer", lambda meta: meta.update(hidden_size=True))
meta_value("hidden_size_0", lambda meta: meta.update(hidden_size=0))
meta_value("top_k_0", lambda meta: meta.update(top_k=0))
meta_value("top_k_above_all", lambda meta: meta.update(top_k=3))
meta_value("no_layers", lambda meta: meta.update(layers=[]))
meta_value("layer_not_in_index", lambda meta: meta["layers"][-1].update(layer=9))
meta_value("num_experts", lambda meta: meta["layers"][0].update(num_experts=4))
meta_value("layout", lambda meta: meta["layers"][0].update(layout=1))
meta_value("layout_unknown", lambda meta: meta["layers"][0].update(layout=2))
meta_value("prefix", lambda meta: meta["layers"][0].update(prefix=None))
meta_value("descending", lambda meta: meta["layers"].reverse())
meta_value("pin_with_more", lambda meta: meta["dense_header"].update(more=1))
meta_value("source_size", lambda meta: meta["source"].update(files={"a": {"size": -1}}))
meta_value("repository", lambda meta: meta["source"].update(repository=1))
meta_value("tensors", lambda meta: meta.update(tensors={"a": [1]}))
meta_value("counts", lambda meta: meta.update(counts=[]))


# --- LAYT: header of 16, then 32 and 9 parts of 32, then 32 and 4 parts of 32 ---

FIRST_PARTS = 16 + 32
SECOND = FIRST_PARTS + 9 * 32


def layt(name: str, code: str, form: str, at: int, value: int) -> None:
    def case(shard: Container) -> None:
        shard.put(form, shard.at("LAYT") + at, value)
        shard.seal()

    case.__name__ = name
    shard_case(code)(case)


layt("count", "E_LAYOUT", "<I", 0, 3)
layt("count_0", "E_LAYOUT", "<I", 0, 0)
layt("count_4097", "E_LAYOUT", "<I", 0, 4097)
layt("reserved", "E_LAYOUT", "<I", 8, 1)
layt("id", "E_LAYOUT", "<H", 16, 1)
layt("part_count", "E_LAYOUT", "<H", 18, 65)
layt("layout_reserved", "E_LAYOUT", "<Q", 16 + 24, 1)
layt("projection", "E_LAYOUT", "<B", FIRST_PARTS, 7)
layt("projection_order", "E_LAYOUT", "<B", FIRST_PARTS, 2)
layt("role", "E_LAYOUT", "<B", FIRST_PARTS + 1, 6)
layt("dtype", "E_DTYPE", "<B", FIRST_PARTS + 2, 23)
layt("mode", "E_LAYOUT", "<B", FIRST_PARTS + 3, 6)
layt("mode_differs", "E_LAYOUT", "<B", FIRST_PARTS + 32 + 3, 3)
layt("ndim", "E_LAYOUT", "<B", FIRST_PARTS + 4, 3)
layt("bits", "E_LAYOUT", "<B", FIRST_PARTS + 5, 7)
layt("group_size", "E_LAYOUT", "<H", FIRST_PARTS + 6, 16)
layt("cols", "E_LAYOUT", "<I", FIRST_PARTS + 12, 9)
layt("rows_0", "E_LAYOUT", "<I", FIRST_PARTS + 8, 0)
layt("offset", "E_LAYOUT", "<Q", FIRST_PARTS + 32 + 16, 128)
layt("length", "E_LAYOUT", "<Q", FIRST_PARTS + 24, 2**64 - 1)
layt("scales_dtype", "E_LAYOUT", "<B", FIRST_PARTS + 32 + 2, 4)
layt("weight_dtype", "E_LAYOUT", "<B", FIRST_PARTS + 2, 12)
layt("bits_without_mode", "E_LAYOUT", "<B", SECOND + 32 + 5, 4)


@shard_case("E_LAYOUT")
def after_the_last_part(shard: Container) -> None:
    shard.replace("LAYT", shard.raw("LAYT") + bytes(32))
    shard.seal()


@shard_case("E_DTYPE")
def half_a_byte(shard: Container) -> None:
    # f6 elements, 7 * 5 of them: 210 bits.
    part = shard.at("LAYT") + SECOND + 32
    shard.put("<B", part + 2, 21)
    shard.seal()


# --- EXPT ---


def expt(name: str, code: str, form: str, at: int, value: int) -> None:
    def case(shard: Container) -> None:
        shard.put(form, shard.at("EXPT") + at, value)
        shard.seal()

    case.__name__ = name
    shard_case(code)(case)


expt("expert_number", "E_INDEX", "<H", 64 + 2, 2)
expt("layout_of_one", "E_INDEX", "<H", 64 + 4, 1)
expt("flags", "E_INDEX", "<H", 6, 1)
expt("expt_reserved", "E_INDEX", "<I", 28, 1)
expt("offset_of_one", "E_INDEX_EXTENT", "<Q", 64 + 8, 1 << 60)
expt("offset_wraps", "E_INDEX_EXTENT", "<Q", 64 + 8, 2**64 - 16384)
expt("length_of_one", "E_INDEX_EXTENT", "<Q", 64 + 16, 0)


@shard_case("E_INDEX")
def half_an_entry(shard: Container) -> None:
    shard.replace("EXPT", shard.raw("EXPT") + bytes(32))
    shard.seal()


# --- DENS ---


def dens(name: str, code: str, change: Callable[[dict[str, Any]], object]) -> None:
    def case(shard: Container) -> None:
        shard.change_dense(change)
        shard.seal()

    case.__name__ = name
    shard_case(code)(case)


dens("dense_dtype", "E_DTYPE", lambda header: header["scale"].update(dtype="f32"))
dens("dense_half_byte", "E_DTYPE", lambda header: header["mask"].update(dtype="F4"))
dens("shape", "E_DENSE", lambda header: header["scale"].update(shape=[2]))
dens("negative", "E_DENSE", lambda header: header["scale"].update(shape=[-1]))
dens("dimensions", "E_DENSE", lambda header: header["scale"].update(shape=[1] * 33))
dens("elements", "E_DENSE", lambda header: header["scale"].update(shape=[2**53 - 1, 2, 0]))
dens("hole", "E_DENSE", lambda header: header.pop("scale"))
dens("offsets", "E_DENSE", lambda header: header["scale"].update(data_offsets=[4, 0]))
dens("offsets_outside", "E_DENSE", lambda h: h["scale"].update(data_offsets=[2**40, 2**40 + 4]))
dens("one_key_more", "E_DENSE", lambda header: header["scale"].update(more=1))
dens("metadata", "E_DENSE", lambda header: header.update(__metadata__={"a": 1}))


@shard_case("E_DENSE_SHA256")
def header_not_the_pinned_one(shard: Container) -> None:
    raw = shard.raw("DENS")
    shard.replace("DENS", raw.replace(b'"mask"', b'"musk"'))
    shard.seal()


@shard_case("E_DENSE")
def header_leaves_the_section(shard: Container) -> None:
    shard.put("<Q", shard.at("DENS"), 1 << 20)
    shard.seal()


@shard_case("E_LIMIT")
def header_too_long(shard: Container) -> None:
    shard.put("<Q", shard.at("DENS"), 2**64 - 1)
    shard.seal()


@shard_case("E_JSON_DUPLICATE_KEY")
def tensor_twice(shard: Container) -> None:
    raw = shard.raw("DENS")
    (length,) = struct.unpack_from("<Q", raw)
    text = raw[8 : 8 + length].replace(b'"mask"', b'"scale"')
    shard.replace_dense_header(text)
    shard.seal()


# --- BLKS ---


@shard_case("E_BLOCK_CRC")
def payload_bit(shard: Container) -> None:
    shard.data[shard.at("BLKS") + 100] ^= 1


@shard_case("E_BLOCK_CRC")
def crc_in_the_index(shard: Container) -> None:
    shard.data[shard.at("EXPT") + 24] ^= 1
    shard.seal()


@shard_case("E_BLOCK_SHA256")
def sha256_in_the_index(shard: Container) -> None:
    shard.data[shard.at("EXPT") + 32] ^= 1
    shard.seal()


@shard_case("E_PADDING")
def after_the_payload(shard: Container) -> None:
    block_bytes = LAYERS[0][2].block_bytes
    shard.data[shard.at("BLKS") + block_bytes - 1] = 1


@shard_case("E_PADDING")
def between_parts(shard: Container) -> None:
    """The checksums are of the wrong byte, too."""
    layout = LAYERS[2][2]
    first = shard.at("BLKS") + 6 * LAYERS[0][2].block_bytes
    shard.data[first + layout.parts[0].length_bytes] = 1
    payload = bytes(shard.data[first : first + layout.payload_bytes])
    entry = shard.at("EXPT") + 6 * 64
    shard.put("<I", entry + 24, zlib.crc32(payload))
    shard.data[entry + 32 : entry + 64] = hashlib.sha256(payload).digest()
    shard.seal()


@pytest.mark.parametrize(("change", "code"), SHARD_CASES)
def test_shard(folder: Path, change: Change, code: str) -> None:
    shard = Container(folder)
    change(shard)
    shard.save()
    found = codes(folder)
    assert found == {code} | FOLLOWS.get(change.__name__, set())
