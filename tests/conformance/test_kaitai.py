"""kexp-v1.ksy, compiled by the real compiler, sees in every valid vector what our reader sees."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from conformance.vectors import ROOT, Vector, load_vectors
from formats import KexpSet, Shard, open_set
from specs.fields import Structure, load_fields

HERE = Path(__file__).with_name("kaitai")
KSY = ROOT / "specs" / "kexp-v1.ksy"
STRUCTURES = load_fields().structures
NPM_SECONDS = 300


def missing(what: str) -> NoReturn:
    """Skip visibly where the tools are not; fail where they are promised."""
    if os.environ.get("KANDIGA_REQUIRE_KAITAI") == "1":
        pytest.fail(f"KANDIGA_REQUIRE_KAITAI is set, but {what}")
    pytest.skip(what)


def compiler_folder() -> Path:
    """Return a folder with the pinned npm packages, installed once for each lock file."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed")
    lock = (HERE / "package-lock.json").read_bytes()
    folder = ROOT / "build" / f"kaitai-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "node_modules").is_dir():
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
        fresh.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, fresh)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=fresh, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
        )
        if done.returncode:
            shutil.rmtree(fresh)
            missing(f"npm ci fails: {done.stderr.strip().splitlines()[-1:]}")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return folder


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module that the compiler makes of kexp-v1.ksy."""
    if importlib.util.find_spec("kaitaistruct") is None:
        missing("kaitaistruct is not installed: run make env")
    out = tmp_path_factory.mktemp("kaitai")
    environment = os.environ | {"NODE_PATH": str(compiler_folder() / "node_modules")}
    subprocess.run(
        ["node", str(HERE / "compile.js"), str(KSY), str(out)], check=True, env=environment
    )
    spec = importlib.util.spec_from_file_location("kexp_v1", out / "kexp_v1.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def plain(value: Any) -> Any:
    return value.encode("ascii") if isinstance(value, str) else value


def check_fields(parsed: Any, structure: Structure, data: bytes, offset: int) -> None:
    """Compare every field with what stands at its place in the file.

    Both are named by kexp-v1.fields.toml, so a field that the description lacks is found too.
    """
    for name, value in structure.unpack(data, offset).items():
        assert plain(getattr(parsed, name)) == value, f"{structure.name}.{name}"


def test_codes_are_those_of_the_specification(parser: ModuleType) -> None:
    fields = load_fields()
    wanted = fields.codes | {"dtype": {name: code for code, name, _ in fields.dtypes}}
    for group, names in wanted.items():
        found = getattr(parser.KexpV1, group.title())
        assert {each.name: int(each) for each in found} == names


@pytest.mark.parametrize(
    "vector", [pytest.param(each, id=each.name) for each in load_vectors("valid")]
)
def test_valid_vectors(parser: ModuleType, vector: Vector) -> None:
    with open_set(vector.path) as opened:
        for number, shard in enumerate(opened.shards):
            with parser.KexpV1.from_file(str(shard.path)) as parsed:
                check_shard(parsed, shard, opened, number)


def check_shard(parsed: Any, shard: Shard, opened: KexpSet, number: int) -> None:
    data = shard.path.read_bytes()
    check_fields(parsed.superblock, STRUCTURES["superblock"], data, 0)
    assert len(parsed.section_table) == len(shard.sections)
    for index, (entry, section) in enumerate(
        zip(parsed.section_table, shard.sections, strict=True)
    ):
        check_fields(entry, STRUCTURES["section_entry"], data, 4096 + 80 * index)
        assert entry.stored == data[section.offset_bytes : section.end_bytes]
    bodies = {entry.tag: entry.body for entry in parsed.section_table}
    check_layouts(bodies["LAYT"], shard, data)
    if "EXPT" in bodies:
        check_index(bodies["EXPT"], opened, number, data)
    if "DENS" in bodies:
        check_dense(bodies["DENS"], opened)


def check_layouts(body: Any, shard: Shard, data: bytes) -> None:
    at = shard.section(b"LAYT").offset_bytes
    check_fields(body.header, STRUCTURES["layout_section_header"], data, at)
    at += STRUCTURES["layout_section_header"].size_bytes
    for parsed, layout in zip(body.layouts, shard.layouts, strict=True):
        check_fields(parsed.header, STRUCTURES["layout_header"], data, at)
        at += STRUCTURES["layout_header"].size_bytes
        for found, part in zip(parsed.parts, layout.parts, strict=True):
            check_fields(found, STRUCTURES["part"], data, at)
            at += STRUCTURES["part"].size_bytes
            names = (found.projection.name, found.role.name, found.dtype.name, found.mode.name)
            assert names == (part.projection, part.role, part.dtype, part.mode)
            assert (found.offset, found.length) == (part.offset_bytes, part.length_bytes)


def check_index(body: Any, opened: KexpSet, number: int, data: bytes) -> None:
    at = opened.shards[number].section(b"EXPT").offset_bytes
    seen = []
    for entry in body.entries:
        check_fields(entry, STRUCTURES["expert_entry"], data, at)
        at += STRUCTURES["expert_entry"].size_bytes
        extent = opened.extent(entry.layer, entry.expert)
        assert (extent.shard, extent.offset_bytes) == (number, entry.offset)
        payload = opened.block(entry.layer, entry.expert)
        assert entry.block[: extent.payload_bytes] == payload
        seen.append((entry.layer, entry.expert))
    layers = opened.shards[number].layers
    assert seen == [(layer, e) for layer, rows in layers.items() for e in range(rows.num_experts)]


def check_dense(body: Any, opened: KexpSet) -> None:
    header = json.loads(body.header)
    header.pop("__metadata__", None)
    assert header.keys() == opened.dense.keys()
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert body.data[begin:end] == opened.dense_array(name).tobytes()


@pytest.mark.parametrize("name", ["magic", "major", "header-size", "incompat-bit", "block-align"])
def test_headers_that_are_refused(parser: ModuleType, name: str) -> None:
    """The description checks the superblock's constants; the rest is the reader's business."""
    import kaitaistruct

    (vector,) = [each for each in load_vectors("invalid") if each.path.name == name]
    with pytest.raises(kaitaistruct.ValidationFailedError):
        parser.KexpV1.from_file(str(vector.path / "model.kexp"))
