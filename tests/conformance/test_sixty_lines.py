"""The program of read-in-60-lines.md runs, and reads what was packed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import make_checkpoint
from conformance.vectors import ROOT, VECTORS
from cython_kernels.reference.matrix import dequantize, to_float64
from formats import open_set
from packed import pack_checkpoint

PAGE = (ROOT / "specs" / "read-in-60-lines.md").read_text()

# The program computes scale * code + bias in float64, mlx in float32: two roundings of 2^-24.
FLOAT32_ROUNDINGS = 2**-22


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path_factory.mktemp("page") / "read_kexp.py"
    path.write_text(code)
    return path


def run(program: Path, folder: Path, *numbers: int) -> subprocess.CompletedProcess[str]:
    # -I -S: no project and no installed package in sight.
    command = [sys.executable, "-I", "-S", str(program), str(folder), *map(str, numbers)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_row(program: Path, folder: Path, *numbers: int) -> list[float]:
    done = run(program, folder, *numbers)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_it_has_sixty_lines(program: Path) -> None:
    lines = program.read_text().splitlines()
    assert sum(1 for line in lines if line.strip()) <= 60
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("name", "layer"),
    [("quantized", 3), ("mixed-bits", 3), ("shards", 0), ("shards", 2), ("unquantized", 3)],
)
def test_vectors(program: Path, name: str, layer: int) -> None:
    folder = VECTORS / "valid" / name
    with open_set(folder) as opened:
        block, layout = opened.block(layer, 0), opened.layout(layer)
        parts = {}
        for role in ("weight", "scales", "biases"):
            part = layout.part("gate", role)
            if part is not None:
                data = block[part.offset_bytes : part.offset_bytes + part.length_bytes]
                carrier = {"u32": "<u4", "f32": "<f4", "f16": "<f2", "bf16": "<u2"}[part.dtype]
                parts[role] = np.frombuffer(data, carrier).reshape(part.shape)
        weight = layout.part("gate", "weight")
        scales = layout.part("gate", "scales")
        assert weight is not None
        if scales is None:
            wanted = to_float64(parts["weight"], weight.dtype)
        else:
            wanted = dequantize(
                parts["weight"],
                parts["scales"],
                parts["biases"],
                bits=weight.bits,
                group_size=weight.group_size,
                scale_dtype=scales.dtype,
            )
        assert read_row(program, folder, layer, 0, 4) == wanted[4].tolist()


@pytest.mark.parametrize(("bits", "dtype"), [(4, "bfloat16"), (6, "float16"), (None, "bfloat16")])
def test_a_packed_model(program: Path, tmp_path: Path, bits: int | None, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", bits=bits, dtype=dtype)
    packed = pack_checkpoint(folder, shard_bytes=1)
    tensors = mx.load(str(folder / "model.safetensors"))
    layer, expert, row = 1, 2, 3
    name = f"model.layers.{layer}.mlp.switch_mlp.gate_proj"
    weight = tensors[f"{name}.weight"][expert]
    if bits is not None:
        scales, biases = (tensors[f"{name}.{role}"][expert] for role in ("scales", "biases"))
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        weight = mx.dequantize(weight, scales, biases, group_size=32, bits=bits)
    wanted = np.array(weight[row].astype(mx.float32), dtype=np.float64)
    read = np.array(read_row(program, packed.container, layer, expert, row))
    assert len(list(packed.container.glob("model-*.kexp"))) > 1
    np.testing.assert_allclose(read, wanted, rtol=0, atol=FLOAT32_ROUNDINGS * abs(wanted).max())


@pytest.mark.parametrize(
    "name",
    ["magic", "major", "header-crc", "incompat-bit", "file-size", "table-crc", "short"],
)
def test_it_refuses(program: Path, name: str) -> None:
    done = run(program, VECTORS / "invalid" / name, 3, 0, 0)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_it_finds_damage(program: Path) -> None:
    """Every fault that lies on its way: a block's crc32, an index, an expert that is not there."""
    assert "damaged" in run(program, VECTORS / "invalid" / "block-crc", 2, 0, 0).stderr
    assert "no layer" in run(program, VECTORS / "valid" / "shards", 1, 0, 0).stderr
