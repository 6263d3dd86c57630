"""The tables of the specification live once; text, C header and code are held to them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.vectors import ROOT
from formats import constants, dtypes, expert_index, layout, layout_section, manifest, meta
from formats import sections as section_table
from formats import superblock as superblock_module
from specs import make_tables
from specs.fields import load_fields

FIELDS = load_fields()
TEXT = (ROOT / "specs" / "kexp-v1.md").read_text()


def field_places(layout: struct.Struct) -> list[tuple[int, int]]:
    """Return (offset, size) of every field of a struct, padding left out."""
    places, at = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        size = struct.calcsize("<" + code)
        if code in "sx":
            if code == "s":
                places.append((at, int(count or 1)))
            at += int(count or 1)
            continue
        for _ in range(int(count or 1)):
            places.append((at, size))
            at += size
    assert at == layout.size
    return places


@pytest.mark.parametrize(
    ("name", "code", "left_out"),
    [
        ("superblock", superblock_module._FIELDS, {"zeros", "header_crc"}),
        ("section_entry", section_table._ENTRY, set()),
        ("layout_section_header", layout_section._HEADER, {"reserved"}),
        ("layout_header", layout_section._LAYOUT, set()),
        ("part", layout_section._PART, set()),
        ("expert_entry", expert_index.ENTRY, set()),
    ],
)
def test_python_structs(name: str, code: struct.Struct, left_out: set[str]) -> None:
    fields = [field for field in FIELDS.structures[name].fields if field.name not in left_out]
    assert field_places(code) == [(field.offset_bytes, field.size_bytes) for field in fields]


def test_the_header_crc_stands_last() -> None:
    place = FIELDS.structures["superblock"]["header_crc"].offset_bytes
    assert place == superblock_module._CRC_OFFSET


def test_index_entries_as_numpy_sees_them() -> None:
    dtype = expert_index.ENTRY_DTYPE
    assert dtype.names is not None
    assert dtype.fields is not None
    places = [(dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in dtype.names]
    wanted = [(f.offset_bytes, f.size_bytes) for f in FIELDS.structures["expert_entry"].fields]
    assert (places, dtype.itemsize) == (wanted, FIELDS.structures["expert_entry"].size_bytes)


def test_constants() -> None:
    assert FIELDS.constants == {
        "magic": constants.MAGIC.hex(),
        "version_major": constants.VERSION_MAJOR,
        "version_minor": constants.VERSION_MINOR,
        "header_size": constants.HEADER_BYTES,
        "section_entry_size": constants.SECTION_ENTRY_BYTES,
        "expert_entry_size": constants.EXPERT_ENTRY_BYTES,
        "block_align": constants.BLOCK_ALIGN,
        "tensor_align": constants.TENSOR_ALIGN,
        "zstd_magic": section_table._ZSTD_MAGIC.hex(),
    }


def test_limits() -> None:
    assert FIELDS.limits == {
        "shards": constants.MAX_SHARDS,
        "sections": constants.MAX_SECTIONS,
        "meta_bytes": constants.MAX_JSON_BYTES,
        "layout_section_bytes": layout_section.MAX_LAYOUT_SECTION_BYTES,
        "index_bytes": expert_index.MAX_INDEX_BYTES,
        "dense_json_bytes": constants.MAX_JSON_BYTES,
        "compressed_raw_bytes": section_table.MAX_COMPRESSED_RAW_BYTES,
        "manifest_bytes": constants.MAX_JSON_BYTES,
        "config_bytes": constants.MAX_JSON_BYTES,
        "config_depth": constants.MAX_CONFIG_DEPTH,
        "json_depth": constants.MAX_JSON_DEPTH,
        "json_values": constants.MAX_JSON_VALUES,
        "json_integer": constants.MAX_JSON_INT,
        "json_string_bytes": constants.MAX_STRING_BYTES,
        "zstd_window_bytes": constants.MAX_ZSTD_WINDOW_BYTES,
        "layer": constants.MAX_LAYERS - 1,
        "experts_per_layer": constants.MAX_EXPERTS_PER_LAYER,
        "layouts": constants.MAX_LAYOUTS,
        "parts": constants.MAX_PARTS,
        "payload_bytes": constants.MAX_BLOCK_BYTES,
        "tensor_dims": constants.MAX_TENSOR_DIMS,
        "tensor_elements": constants.MAX_JSON_INT,
        "file_name": 255,
    }


def test_codes_and_element_types() -> None:
    assert FIELDS.codes == {
        "codec": {"raw": section_table.CODEC_RAW, "zstd": section_table.CODEC_ZSTD},
        "projection": layout.PROJECTIONS,
        "role": layout.ROLES,
        "mode": layout.MODES,
    }
    assert FIELDS.dtypes == [(each.code, each.name, each.bits) for each in dtypes.TABLE]
    modes = {
        mode["name"]: (tuple(mode["bits"]), tuple(mode["group_size"]))
        for mode in FIELDS.raw["modes"]
    }
    assert modes == layout._QUANTIZATIONS


def test_sections() -> None:
    tags = [section["tag"].encode() for section in FIELDS.raw["sections"]]
    assert tuple(tags) == section_table.required_tags(0, 1)
    for section, tag in zip(FIELDS.raw["sections"], tags, strict=True):
        assert section["align"] == section_table.section_align(tag)
        assert section["raw"] == (tag in section_table._ALWAYS_RAW)


def test_keys_of_the_documents() -> None:
    keys = {item["name"]: item["keys"] for item in FIELDS.raw["objects"]}
    assert {key["key"] for key in keys["meta"] if not key.get("optional")} == meta._REQUIRED.keys()
    assert {key["key"] for key in keys["meta"] if key.get("optional")} == meta._OPTIONAL.keys()


def test_every_error_code_is_specified_and_raised() -> None:
    raised = {
        code
        for file in (ROOT / "formats").glob("*.py")
        for code in re.findall(r'"(E_[A-Z0-9_]+)"', file.read_text())
    }
    assert raised == FIELDS.errors.keys()


def test_every_code_of_the_text_is_in_the_table() -> None:
    assert set(re.findall(r"\bE_[A-Z0-9_]+", TEXT)) == FIELDS.errors.keys()
    against = {each["code"] for each in FIELDS.raw["against"]}
    assert set(re.findall(r"\bAGAINST_[A-Z0-9_]+", TEXT)) == against


def test_unpinned_files_are_those_listed() -> None:
    for name in manifest.UNPINNED_FILES:
        assert f"`{name}`" in TEXT


def test_text_and_header_are_up_to_date() -> None:
    subprocess.run([sys.executable, "-m", "specs.make_tables", "--check"], check=True, cwd=ROOT)


def test_every_table_has_a_place_in_the_text() -> None:
    places = re.findall(r"<!-- table ([a-z_0-9]+) -->", TEXT)
    assert sorted(places) == sorted(make_tables._tables(FIELDS))


def test_every_section_that_is_referred_to_exists() -> None:
    numbers = set(re.findall(r"^#+ (\d+(?:\.\d+)?)", TEXT, re.MULTILINE))
    # RFC 9162 has a section 2.1.1 of its own.
    assert set(re.findall(r"[Ss]ection (\d+(?:\.\d+)*)", TEXT)) - {"2.1.1"} <= numbers
    for title, anchor in re.findall(r"\[(\d+ [^\]]+)\]\(#([^)]+)\)", TEXT):
        number = title.split()[0]
        heading = re.search(rf"^## {number}\. (.*)$", TEXT, re.MULTILINE)
        assert heading is not None, title
        slug = re.sub(r"[^\w\- ]", "", f"{number} {heading[1]}".lower()).replace(" ", "-")
        assert anchor == slug


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("options", [("-std=c11", "-xc"), ("-std=c++17", "-xc++")])
def test_the_header_compiles(options: tuple[str, ...], tmp_path: Path) -> None:
    """Its static_asserts hold every size and offset; here is one that must not compile."""

    def compile_code(code: str) -> int:
        source = tmp_path / "use.c"
        source.write_text(code)
        command = ["cc", *options, "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsyntax-only"]
        include = f"-I{ROOT / 'specs'}"
        return subprocess.run(
            [*command, include, str(source)], capture_output=True, check=False
        ).returncode

    use = '#include "kexp_v1.h"\n'
    assert compile_code(use) == 0
    assert compile_code(use + 'static_assert(sizeof(struct kexp_part) == 33, "");\n') != 0
