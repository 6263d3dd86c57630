"""The validator's facts are those of kexp-v1.fields.toml, which it does not read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from specs import validate_kexp as validator

FACTS: dict[str, Any] = tomllib.loads(
    Path(validator.__file__).with_name("kexp-v1.fields.toml").read_text()
)
STRUCTS = {
    "section_entry": (validator.SectionEntry, validator.SECTION_ENTRY),
    "layout_header": (validator.LayoutHeader, validator.LAYOUT_HEADER),
    "part": (validator.Part, validator.PART),
    "expert_entry": (validator.ExpertEntry, validator.EXPERT_ENTRY),
}
LETTERS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
LIMITS = {
    "shards": validator.MAX_SHARDS,
    "sections": validator.MAX_SECTIONS,
    "meta_bytes": validator.MAX_RAW_BYTES[b"META"],
    "layout_section_bytes": validator.MAX_RAW_BYTES[b"LAYT"],
    "index_bytes": validator.MAX_RAW_BYTES[b"EXPT"],
    "dense_json_bytes": validator.MAX_JSON_BYTES,
    "compressed_raw_bytes": validator.MAX_COMPRESSED_RAW_BYTES,
    "manifest_bytes": validator.MAX_JSON_BYTES,
    "config_bytes": validator.MAX_JSON_BYTES,
    "config_depth": validator.MAX_CONFIG_DEPTH,
    "json_depth": validator.MAX_JSON_DEPTH,
    "json_values": validator.MAX_JSON_VALUES,
    "json_integer": validator.MAX_JSON_INTEGER,
    "json_string_bytes": validator.MAX_JSON_STRING_BYTES,
    "zstd_window_bytes": validator.MAX_ZSTD_WINDOW_BYTES,
    "layer": validator.MAX_LAYERS - 1,
    "experts_per_layer": validator.MAX_EXPERTS,
    "layouts": validator.MAX_LAYOUTS,
    "parts": validator.MAX_PARTS,
    "payload_bytes": validator.MAX_PAYLOAD_BYTES,
    "tensor_dims": validator.MAX_DIMENSIONS,
    "tensor_elements": validator.MAX_ELEMENTS,
    "file_name": 255,
}


def struct_format(fields: list[dict[str, Any]]) -> str:
    letters = []
    for field in fields:
        array = re.fullmatch(r"u8\[(\d+)\]", field["type"])
        letters.append(f"{array[1]}s" if array else LETTERS[field["type"]])
    return "<" + "".join(letters)


def facts_of(name: str) -> dict[str, Any]:
    return next(struct for struct in FACTS["structs"] if struct["name"] == name)


@pytest.mark.parametrize("name", STRUCTS)
def test_structures(name: str) -> None:
    record, layout = STRUCTS[name]
    facts = facts_of(name)
    assert layout.format == struct_format(facts["fields"])
    assert layout.size == facts["size"]
    assert list(record._fields) == [field["name"] for field in facts["fields"]]


def test_superblock() -> None:
    fields = facts_of("superblock")["fields"]
    assert list(validator.Superblock._fields) == [field["name"] for field in fields[:-2]]
    assert validator.SUPERBLOCK.format == struct_format(fields[:-2])
    assert validator.SUPERBLOCK.size == fields[-2]["offset"]
    assert facts_of("superblock")["size"] == validator.HEADER_SIZE
    assert fields[-1]["offset"] == validator.HEADER_SIZE - 4
    assert facts_of("layout_section_header")["size"] == validator.LAYT_HEADER.size


def test_every_structure_is_held() -> None:
    held = {*STRUCTS, "superblock", "layout_section_header"}
    assert held == {struct["name"] for struct in FACTS["structs"]}


def test_constants() -> None:
    constants = FACTS["constants"]
    assert validator.MAGIC.hex() == constants["magic"]
    assert constants["version_major"] == validator.VERSION_MAJOR
    assert constants["header_size"] == validator.HEADER_SIZE
    assert constants["block_align"] == validator.BLOCK_ALIGN
    assert constants["tensor_align"] == validator.TENSOR_ALIGN


def test_limits() -> None:
    assert {limit["name"]: limit["max"] for limit in FACTS["limits"]} == LIMITS
    assert validator.FILE_NAME.fullmatch("a" * 255)
    assert not validator.FILE_NAME.fullmatch("a" * 256)


def test_sections() -> None:
    assert [s["tag"].encode() for s in FACTS["sections"]] == list(validator.SECTIONS_ONLY)
    for section in FACTS["sections"]:
        tag = section["tag"].encode()
        align = validator.BLOCK_ALIGN if tag in validator.BLOCK_ALIGNED else validator.TENSOR_ALIGN
        assert section["align"] == align
        assert section["raw"] == (tag in validator.RAW_ONLY)
        assert section["limit"] == validator.MAX_RAW_BYTES.get(tag, 0)


def test_codes() -> None:
    codes = FACTS["codes"]
    assert codes["codec"] == {"raw": validator.CODEC_RAW, "zstd": validator.CODEC_ZSTD}
    for name, table in (
        ("projection", validator.PROJECTIONS),
        ("role", validator.ROLES),
        ("mode", validator.MODES),
    ):
        assert {text: code for code, text in table.items()} == codes[name]
    dtypes = [[code, name, bits] for code, (name, bits) in validator.DTYPES.items()]
    assert dtypes == FACTS["dtypes"]["table"]


def test_modes() -> None:
    held = {validator.MODES[code]: rule for code, rule in validator.MODE_RULES.items()}
    assert set(held) == {mode["name"] for mode in FACTS["modes"]}
    for mode in FACTS["modes"]:
        rule = held[mode["name"]]
        assert list(rule.bits) == mode["bits"]
        assert list(rule.group_sizes) == mode["group_size"]
        assert {validator.ROLES[role] for role in rule.required} == set(mode["required"])
        assert {validator.ROLES[role] for role in rule.optional} == set(mode["optional"])
        assert [validator.DTYPES[code][0] for code in rule.scales] == mode["scales"]


def test_errors() -> None:
    """Each code that a file can bring about is somewhere in the program, and no other."""
    used = set(re.findall(r'"(E_[A-Z0-9_]+)"', Path(validator.__file__).read_text()))
    known = {error["code"] for error in FACTS["errors"] if error["cause"] in ("file", "system")}
    assert used == known


def test_codes_of_a_comparison() -> None:
    used = set(re.findall(r'"(AGAINST_[A-Z]+)"', Path(validator.__file__).read_text()))
    assert used == {each["code"] for each in FACTS["against"]}
