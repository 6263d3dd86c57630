"""A GGUF file through the command: packed, compared with itself, exported for mlx-lm."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from checkpoints import reference_logits
from gguf_files import make_model, write_gguf
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.sources.gguf import GgufSource


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, Kind.F16], ids=lambda kind: kind.name)
def test_gguf(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, make_model("mixtral", tmp_path / "mlx"), kind)
    packed, exported = str(tmp_path / "packed"), tmp_path / "exported"
    assert run(["convert", str(path), packed, "--quiet"]) == ExitCode.OK
    assert run(["verify", packed, "--against", str(path), "--quiet"]) == ExitCode.OK
    assert run(["export", packed, str(exported), "--quiet"]) == ExitCode.OK
    source = GgufSource(path)
    tensors = mx.load(str(exported / "model.safetensors"))
    assert tensors.keys() == source.tensors.keys()
    for name in tensors:
        wanted = source.read(name).reshape(-1).view(np.uint8)
        assert np.array_equal(np.array(tensors[name].reshape(-1).view(mx.uint8)), wanted), name
    source.close()
    assert np.isfinite(reference_logits(exported, [1, 2, 3]).prefill).all()


def test_quantize_is_not_for_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    arguments = ["convert", str(tmp_path / "model.gguf"), str(tmp_path / "packed")]
    assert run([*arguments, "--quantize", "4"]) == ExitCode.USAGE


def test_a_cut_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, make_model("mixtral", tmp_path / "mlx"), Kind.Q8_0)
    path.write_bytes(path.read_bytes()[:-1])
    assert run(["convert", str(path), str(tmp_path / "packed")]) == ExitCode.FAILED
    stderr = capsys.readouterr().err
    assert "model.gguf" in stderr
    assert stderr.count("\n") == 1, stderr
    assert not (tmp_path / "packed").exists()
