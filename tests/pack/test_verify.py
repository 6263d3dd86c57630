"""verify finds what was changed, in the container or between it and a source."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import make_checkpoint
from formats import KexpError, open_set
from kandiga_pack import PackError, Quantization, convert, export, verify
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "qwen3_moe", dtype="float16")


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    convert(source, tmp_path / "packed")
    return tmp_path / "packed"


def flip_bit(path: Path, offset_bytes: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset_bytes] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_an_expert(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_set(packed) as opened:
        offset_bytes = opened.extent(1, 5).offset_bytes
    flip_bit(packed / "model.kexp", offset_bytes + 100)
    assert verify(packed, level="index").ok
    assert run(["verify", str(packed)]) == ExitCode.FAILED
    assert "model.kexp: layer 1 expert 5 at 0x" in capsys.readouterr().err
    assert run(["verify", str(packed), "--json"]) == ExitCode.FAILED
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert (report["findings"][0]["layer"], report["findings"][0]["expert"]) == (1, 5)


def test_export_refuses_a_damaged_expert(packed: Path, tmp_path: Path) -> None:
    with open_set(packed) as opened:
        offset_bytes = opened.extent(0, 7).offset_bytes
    flip_bit(packed / "model.kexp", offset_bytes)
    with pytest.raises(KexpError, match=r"layer 0 expert 7 .*E_BLOCK_CRC"):
        export(packed, tmp_path / "exported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "source"]


def test_export_refuses_damaged_dense_weights(packed: Path, tmp_path: Path) -> None:
    """The exported file must be the source's, by its digest."""
    with open_set(packed) as opened:
        offset_bytes = opened.dense["model.norm.weight"].offset_bytes
    flip_bit(packed / "model.kexp", offset_bytes)
    with pytest.raises(PackError, match=r"model.safetensors comes out with sha256"):
        export(packed, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_changed_config(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bit(packed / "config.json", 3)
    assert run(["verify", str(packed), "--level", "index"]) == ExitCode.FAILED
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.switch_mlp.up_proj.scales", "model.embed_tokens.biases"]
)
def test_a_source_that_differs_in_one_bit(name: str, source: Path, packed: Path) -> None:
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors[name].reshape(-1).view(np.uint16)[-1] ^= 1
    save_file(tensors, file, metadata={"format": "mlx"})
    report = verify(packed, against=source)
    assert len(report.findings) == 1
    assert name in str(report.findings[0])
    if "switch_mlp" in name:
        assert str(report.findings[0]).startswith("layer 1 expert 7: ")


def test_minus_zero_is_not_zero(source: Path, packed: Path, tmp_path: Path) -> None:
    """Numbers equal, bits not."""
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = 0.0
    save_file(tensors, file, metadata={"format": "mlx"})
    convert(source, tmp_path / "zero")
    tensors["model.norm.weight"][0] = -0.0
    save_file(tensors, file, metadata={"format": "mlx"})
    assert [str(each) for each in verify(tmp_path / "zero", against=source).findings] == [
        f"model.norm.weight differs from {source}"
    ]


def test_sources_with_other_tensors(source: Path, packed: Path) -> None:
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    tensors["lm_head.biases"] = tensors["lm_head.biases"].astype(np.float32)
    save_file(tensors, file, metadata={"format": "mlx"})
    (source / "model.safetensors.index.json").unlink()
    found = sorted(str(each) for each in verify(packed, against=source).findings)
    assert [each.split(f" {source}")[0] for each in found] == [
        "lm_head.biases is f16 (320, 2), but f32 (320, 2) in",
        "model.extra.weight of",
        "model.norm.weight is not in",
    ]


def test_a_source_with_another_config(source: Path, packed: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    report = verify(packed, against=source)
    assert [str(each) for each in report.findings] == [
        f"config.json differs from that of {source} in rope_theta"
    ]


def test_a_source_that_is_not_there(packed: Path, tmp_path: Path) -> None:
    arguments = ["verify", str(packed), "--against", str(tmp_path / "nowhere")]
    assert run(arguments) == ExitCode.UNREADABLE


def test_export_checks_dense_weights_without_a_recorded_file(tmp_path: Path) -> None:
    """A quantized container has no published file to equal."""
    unquantized = make_checkpoint(tmp_path / "unquantized", "mixtral", bits=None)
    convert(unquantized, tmp_path / "packed", quantization=Quantization(4, 32))
    with open_set(tmp_path / "packed") as opened:
        offset_bytes = opened.dense["model.norm.weight"].offset_bytes
    flip_bit(tmp_path / "packed" / "model.kexp", offset_bytes)
    with pytest.raises(KexpError, match="E_SECTION_CRC"):
        export(tmp_path / "packed", tmp_path / "exported")
