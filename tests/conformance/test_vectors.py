"""The vectors are what their program makes, and reader, verifier and writer agree with them."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.vectors import ROOT, VECTORS, Vector, load_cases, load_vectors
from formats import DenseSpec, KexpError, KexpSet, SetWriter, open_set, plan_shards, verify_full
from specs.fields import load_fields

ALL = load_vectors()
MAX_FILE_BYTES = 64 << 10
PROGRAM = ROOT / "specs" / "make_vectors"


def named(vectors: list[Vector]) -> list[object]:
    return [pytest.param(vector, id=vector.name) for vector in vectors]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_program_makes_these_bytes(tmp_path: Path) -> None:
    # -I: not even the project's folder is importable.
    subprocess.run([sys.executable, "-I", str(PROGRAM), str(tmp_path)], check=True)
    made, kept = contents(tmp_path), contents(VECTORS)
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == []


def test_the_program_imports_the_standard_library_alone() -> None:
    files = sorted(PROGRAM.glob("*.py"))
    importable = sys.stdlib_module_names | {file.stem for file in files}
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    assert nodes
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        assert {name.partition(".")[0] for name in names} <= importable


def test_digests_and_sizes() -> None:
    lines = (VECTORS / "SHA256SUMS").read_text().splitlines()
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    files = contents(VECTORS)
    del files["SHA256SUMS"]
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert max(len(data) for name, data in files.items() if "/" in name) <= MAX_FILE_BYTES


def test_every_code_that_a_file_can_cause_has_a_vector() -> None:
    errors = load_fields().errors
    shown = {vector.code for vector in ALL if vector.code is not None}
    assert shown == {code for code, error in errors.items() if error["cause"] == "file"}
    assert shown.isdisjoint(load_cases()["codes_without_vector"])
    assert shown | load_cases()["codes_without_vector"].keys() == errors.keys()
    # A code that the table says is seen at open is shown at open by one vector at least.
    at_open = {vector.code for vector in ALL if vector.code and vector.level == "open"}
    assert at_open == {code for code in shown if errors[code]["level"] == "open"}


@pytest.mark.parametrize("vector", named(ALL))
def test_reader_and_verifier_agree(vector: Vector) -> None:
    def opened_code() -> str | None:
        try:
            open_set(vector.path).close()
        except KexpError as error:
            return error.code
        return None

    assert opened_code() == (vector.code if vector.level == "open" else None)
    found = [finding.code for finding in verify_full(vector.path).findings]
    assert found == ([] if vector.code is None else [vector.code])


@pytest.mark.parametrize("vector", named(load_vectors("valid")))
def test_valid_sets_are_read_to_the_end(vector: Vector) -> None:
    with open_set(vector.path) as opened:
        for layer in opened.layers:
            for expert in range(opened.num_experts(layer)):
                assert len(opened.block(layer, expert)) == opened.layout(layer).payload_bytes
        for name, tensor in opened.dense.items():
            assert opened.dense_array(name).nbytes == tensor.length_bytes


@pytest.mark.parametrize("vector", named([vector for vector in ALL if vector.writer]))
def test_the_writer_makes_the_same_bytes(vector: Vector, tmp_path: Path) -> None:
    with open_set(vector.path) as opened:
        write_again(opened, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(vector.path)


def write_again(opened: KexpSet, dest: Path) -> None:
    """Give the writer what a packer would: tensors, experts and metadata, no bytes of the file."""
    specs = [DenseSpec(each.name, each.dtype, each.shape) for each in opened.dense.values()]
    layers = [(layer, opened.num_experts(layer), opened.layout(layer)) for layer in opened.layers]
    # The vector with several shards has a layer in each.
    shard_bytes = 1 << 30 if len(opened.shards) == 1 else 1
    plan = plan_shards(sum(each.length_bytes for each in specs), layers, shard_bytes=shard_bytes)
    meta = {key: value for key, value in opened.meta.items() if key != "dense_header"}
    files = [path for path in opened.path.iterdir() if ".kexp" not in path.name]
    files = [path for path in files if path.name != "kexp.json"]
    with SetWriter(dest, plan, meta, specs, files=files) as writer:
        for name in opened.dense:
            writer.write_dense(name, opened.dense_array(name))
        for layer, num_experts, layout in layers:
            for expert in range(num_experts):
                block = opened.block(layer, expert)
                parts = {
                    part.key: block[part.offset_bytes : part.offset_bytes + part.length_bytes]
                    for part in layout.parts
                }
                writer.write_expert(layer, expert, parts)
        writer.commit()
