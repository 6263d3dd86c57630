"""--against compares every tensor with the checkpoint, expert slices included."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from checkpoints import make_checkpoint
from kandiga_pack import convert
from specs.validate_kexp import Report, validate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source, packed): 4-bit experts, a router, attention and norms; three shards."""
    folder = tmp_path_factory.mktemp("against")
    source = make_checkpoint(folder / "source", "qwen3_moe", dtype="float16")
    convert(source, folder / "packed", shard_bytes=1)
    return source, folder / "packed"


@pytest.fixture
def source(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made[0], tmp_path / "source")


@pytest.fixture
def packed(made: tuple[Path, Path]) -> Path:
    return made[1]


class Checkpoint:
    """The one safetensors file of a source: {name: {dtype, shape, data_offsets}} and its data."""

    def __init__(self, source: Path) -> None:
        self.path = source / "model.safetensors"
        data = self.path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        self.header: dict[str, Any] = json.loads(data[8 : 8 + length])
        self.data = bytearray(data[8 + length :])

    def save(self) -> None:
        text = json.dumps(self.header).encode()
        self.path.write_bytes(struct.pack("<Q", len(text)) + text + self.data)

    def begin(self, name: str) -> int:
        return int(self.header[name]["data_offsets"][0])


def found(report: Report) -> list[tuple[str, int | None, int | None]]:
    return [(finding.code, finding.layer, finding.expert) for finding in report.findings]


def test_the_source_itself(packed: Path, source: Path) -> None:
    for level in ("framing", "integrity"):
        report = validate(packed, level=level, against=source)
        assert (report.findings, report.unchecked, report.exit_code) == ([], [], 0)


def test_one_byte_of_an_expert(packed: Path, source: Path) -> None:
    checkpoint = Checkpoint(source)
    name = "model.layers.1.mlp.switch_mlp.down_proj.scales"
    begin, end = checkpoint.header[name]["data_offsets"]
    num_experts = checkpoint.header[name]["shape"][0]
    part = (end - begin) // num_experts
    checkpoint.data[begin + 3 * part + 5] ^= 0x80
    checkpoint.save()
    (finding,) = validate(packed, against=source).findings
    assert (finding.code, finding.layer, finding.expert) == ("AGAINST_BYTES", 1, 3)
    assert "at byte 5 of the expert's part" in finding.message
    assert finding.offset is not None
    data = (packed / finding.file).read_bytes()
    assert data[finding.offset] == checkpoint.data[begin + 3 * part + 5] ^ 0x80


def test_every_tensor_is_compared(packed: Path, source: Path) -> None:
    """The last byte of each."""
    checkpoint = Checkpoint(source)
    sound = bytes(checkpoint.data)
    for name, tensor in checkpoint.header.items():
        if name != "__metadata__":
            checkpoint.data[tensor["data_offsets"][1] - 1] ^= 1
    checkpoint.save()
    findings = validate(packed, level="framing", against=source).findings
    assert {finding.code for finding in findings} == {"AGAINST_BYTES"}
    names = {finding.message.split("'")[1] for finding in findings}
    assert names == checkpoint.header.keys() - {"__metadata__"}
    assert sound != checkpoint.data


def test_another_shape_and_names(packed: Path, source: Path) -> None:
    checkpoint = Checkpoint(source)
    header = checkpoint.header
    header["model.norm.weight"]["shape"].insert(0, 1)
    header["model.layers.0.mlp.gate.more"] = header.pop("model.layers.0.mlp.gate.weight")
    name = "model.layers.0.mlp.switch_mlp.up_proj.weight"
    header[name]["dtype"] = "I32"
    checkpoint.save()
    assert sorted(found(validate(packed, against=source)), key=str) == [
        ("AGAINST_MISSING", None, None),
        ("AGAINST_MISSING", None, None),
        ("AGAINST_TYPE", 0, None),
        ("AGAINST_TYPE", None, None),
    ]


def test_another_config(packed: Path, source: Path) -> None:
    config = source / "config.json"
    config.write_text(config.read_text() + " ")
    (finding,) = validate(packed, against=source).findings
    assert (finding.file, finding.code) == ("config.json", "AGAINST_BYTES")


@pytest.mark.parametrize(
    "data", [b"", b"1234567", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", b"\x02" + bytes(7) + b"{!"]
)
def test_sources_that_are_no_safetensors(packed: Path, source: Path, data: bytes) -> None:
    (source / "model.safetensors").write_bytes(data)
    report = validate(packed, level="framing", against=source)
    assert {finding.code for finding in report.findings} == {"AGAINST_SOURCE"}
    assert report.exit_code == 1


def test_no_source(packed: Path, source: Path) -> None:
    (source / "model.safetensors").unlink()
    report = validate(packed, level="framing", against=source)
    assert found(report) == [("E_FILE_MISSING", None, None)]
    assert report.findings[0].file == "source model.safetensors"


def test_damage_in_the_set_is_a_difference(packed: Path, source: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(packed, tmp_path / "damaged")
    last = sorted(damaged.glob("*.kexp"))[-1]
    data = bytearray(last.read_bytes())
    (offset,) = struct.unpack_from("<Q", data, 4096 + 2 * 80 + 8)
    data[offset] ^= 1
    last.write_bytes(data)
    report = validate(damaged, against=source)
    assert [code for code, _, _ in found(report)] == ["E_BLOCK_CRC", "AGAINST_BYTES"]
