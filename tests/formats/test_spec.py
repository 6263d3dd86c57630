"""The specification and the code name the same errors, and the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

from formats import constants, dtypes, layout, layout_section, manifest

ROOT = Path(__file__).resolve().parents[2]
SPEC = (ROOT / "specs" / "kexp-v1.md").read_text()
CODE = re.compile(r'"(E_[A-Z0-9_]+)"')


def test_every_error_code_is_specified_and_raised() -> None:
    raised = {
        code for file in (ROOT / "formats").glob("*.py") for code in CODE.findall(file.read_text())
    }
    specified = set(re.findall(r"^\| (E_[A-Z0-9_]+) \|", SPEC, re.MULTILINE))
    assert raised == specified


def test_element_types_are_those_of_the_table() -> None:
    table = SPEC.partition("### 8.2")[2].partition("## 9")[0]
    cells = re.findall(r"\| (\d+) \| ([a-z0-9_]+) \| (\d+) (?=\|)", table)
    known = {(str(dtype.code), dtype.name, str(dtype.bits)) for dtype in dtypes.TABLE}
    assert set(cells) == known


def test_part_codes_are_those_of_the_table() -> None:
    for codes in (layout.PROJECTIONS, layout.ROLES, layout.MODES):
        text = ", ".join(f"{code} {name}" for name, code in codes.items())
        assert f"| {text} |" in SPEC


def test_limits_are_those_of_the_table() -> None:
    for what, limit in (
        ("shards", constants.MAX_SHARDS),
        ("sections of a shard", constants.MAX_SECTIONS),
        ("JSON nesting", constants.MAX_JSON_DEPTH),
        ("layer number", constants.MAX_LAYERS - 1),
        ("experts of a layer", constants.MAX_EXPERTS_PER_LAYER),
        ("layouts", constants.MAX_LAYOUTS),
        ("parts of a layout", constants.MAX_PARTS),
        ("dimensions of a dense tensor", constants.MAX_TENSOR_DIMS),
    ):
        assert f"| {what} | {limit} |" in SPEC
    assert f"{layout_section.MAX_LAYOUT_SECTION_BYTES} bytes, raw" in SPEC


def test_unpinned_files_are_those_listed() -> None:
    for name in manifest.UNPINNED_FILES:
        assert f"`{name}`" in SPEC
