"""Memory while packing does not grow with the model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import mixtral
from safetensors.numpy import save_file

# Two slices of dense weights or a block with its parts, and the hashing buffer, need about 25 MB.
# Every stack below is 48 MB, and a layer of them 144 MB.
ALLOWED_BYTES = 40 << 20

STATUS = """
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) << 10
"""

NUM_EXPERTS, HIDDEN_SIZE = 24, 1024

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of unquantized experts, and an embedding table of 48 MB."""
    folder = tmp_path_factory.mktemp("memory") / "source"
    folder.mkdir()
    config = {
        "model_type": "mixtral",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": HIDDEN_SIZE,
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    table = np.zeros((NUM_EXPERTS * HIDDEN_SIZE, HIDDEN_SIZE), np.float16)
    stack = table.reshape(NUM_EXPERTS, HIDDEN_SIZE, HIDDEN_SIZE)
    prefix = "model.layers.0.block_sparse_moe.switch_mlp"
    tensors = {f"{prefix}.{name}_proj.weight": stack for name in ("gate", "up", "down")}
    tensors["model.embed_tokens.weight"] = table
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder


def peak_bytes(*arguments: str) -> int:
    """Return by how much a command raises the peak memory of a process that has imported it."""
    code = (
        "import sys; from kandiga_pack.cli import run\n"
        f"{STATUS}"
        "before = status('VmRSS')\n"
        "assert run(sys.argv[1:]) == 0\n"
        "print(status('VmHWM') - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def test_convert_verify_export(source: Path, tmp_path: Path) -> None:
    packed, exported = str(tmp_path / "packed"), str(tmp_path / "exported")
    assert peak_bytes("convert", str(source), packed, "--quiet") < ALLOWED_BYTES
    verify = ("verify", packed, "--against", str(source), "--quiet")
    assert peak_bytes(*verify) < ALLOWED_BYTES
    assert peak_bytes("export", packed, exported, "--quiet") < ALLOWED_BYTES


def test_quantizing(tmp_path: Path) -> None:
    """Stacks of 96 MB and two tables of 78 MB, quantized within less than one of them."""
    config = {
        "model_type": "mixtral",
        "vocab_size": 40000,
        "hidden_size": 1024,
        "intermediate_size": 1024,
        "num_local_experts": 48,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    parameters = tree_flatten(mixtral.Model(mixtral.ModelArgs.from_dict(config)).parameters())
    zeros = np.zeros(max(array.size for _, array in parameters), np.float16)
    tensors = {name: zeros[: array.size].reshape(array.shape) for name, array in parameters}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "mlx"})
    code = (
        "import sys; from kandiga_pack import Quantization, open_source\n"
        "from kandiga_pack.slices import iter_slices\n"
        f"{STATUS}"
        "source = open_source(sys.argv[1], quantization=Quantization(4))\n"
        "before = status('VmHWM')\n"
        "table, stack = 'lm_head.scales', '.gate_proj.weight'\n"
        "stack = next(name for name in source.tensors if name.endswith(stack))\n"
        "for expert in range(48):\n"
        "    source.read(stack, expert, 1)\n"
        "for _ in iter_slices(source, source.tensors[table]):\n"
        "    pass\n"
        "print(status('VmHWM') - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 76 << 20
