"""Sizes of a model from headers, an index or a name are those of the container and the engine."""

import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from formats import dtypes, open_set
from hub_stub import HubStub, run_with_hub
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.sources.synthetic.presets import PRESETS as PUBLISHED
from kandiga_pack.sources.synthetic.shape import make_shape
from kandiga_run.errors import RunError
from kandiga_run.experts.owned import smallest_budget
from kandiga_run.forecast.checkpoint import TensorSize, checkpoint_shape, parse_header
from kandiga_run.forecast.find import find_shape
from kandiga_run.forecast.forecast import engine_for, memory_needs
from kandiga_run.forecast.presets import PRESETS
from kandiga_run.kv.choices import KVChoice
from packed import Packed, PackedModels

NATIVE = ("mixtral", "qwen3_moe", "qwen3_next", "qwen3_5_moe")
# What the process and the tokenizer take differs from run to run and from version to version.
PROCESS_TOLERANCE_BYTES = 32 << 20


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_published_shapes(name: str) -> None:
    published = make_shape(PUBLISHED[name], Quantization(4, 64), where=name)
    tensors = {
        tensor: TensorSize(tuple(info.shape), dtypes.num_bytes(info.dtype, info.shape))
        for tensor, info in published.tensors.items()
    }
    computed = checkpoint_shape(name, tensors, published.config, kind="preset")
    known = PRESETS[name].shape
    assert known == replace(computed, download=known.download)
    assert known.download is not None
    assert known.download.total_bytes == sum(size.num_bytes for size in tensors.values())


@pytest.mark.parametrize("family", [*NATIVE, "olmoe"])
def test_a_checkpoint_has_the_shape_of_its_container(packed: PackedModels, family: str) -> None:
    made = packed(family)
    before, after = find_shape(str(made.checkpoint)), find_shape(str(made.container))
    assert (before.kind, after.kind) == ("checkpoint", "container")
    assert [each.num_experts for each in before.layers] == [
        each.num_experts for each in after.layers
    ]
    assert before.sizes == after.sizes
    assert before.dense == after.dense
    assert (before.sequence, before.top_k) == (after.sequence, after.top_k)
    # Only the paddings between the parts of a block, 128 bytes at most for each.
    assert (
        0
        <= after.token_expert_bytes - before.token_expert_bytes
        < 128 * 9 * before.top_k * len(before.layers)
    )
    with open_set(made.container) as container:
        least = memory_needs(after, 1, "auto")
        rest = least.process + least.dense + least.buffers + least.kv
        assert least.smallest - rest == smallest_budget(container)
        total = sum(shard.path.stat().st_size for shard in container.shards)
    assert after.packed_bytes == pytest.approx(total, rel=0.5)
    assert after.packed_bytes <= total


@pytest.mark.parametrize("family", NATIVE)
@pytest.mark.parametrize("kv", ["auto", "fp16", "k4v3"])
def test_memory_is_what_the_engine_asks_for(
    packed: PackedModels, family: str, kv: KVChoice
) -> None:
    """The engine itself says what it needs when it is given too little."""
    container = packed(family).container
    tokens = 50_000
    # In a process of its own, since the engine counts what its process holds already.
    code = (
        "import sys; from kandiga_run.engine import load_engine\n"
        "load_engine(sys.argv[1], memory_bytes=1, kv=sys.argv[2], kv_dtype='f16', "
        f"state_tokens={tokens}, engine='native')"
    )
    command = [sys.executable, "-c", code, str(container), kv]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stderr
    assert "cannot work" in said
    kv_mib = float(re.search(r"KV cache of \d+ tokens ([\d.]+)", said)[1])
    needs = memory_needs(find_shape(str(container)), tokens, kv)
    assert needs.kv / 2**20 == pytest.approx(kv_mib, abs=0.1)
    smallest = int(re.search(r"works is (\d+)MiB", said)[1]) << 20
    # Here no tokenizer was read, whose tokens are few.
    assert abs(needs.smallest - smallest) < PROCESS_TOLERANCE_BYTES


def test_weights_as_published_by_the_expert(packed: PackedModels, tmp_path: Path) -> None:
    """Tensors of each expert add up to those of the stacks."""
    stacked = find_shape(str(packed("qwen3_moe").checkpoint))
    config = json.loads((packed("qwen3_moe").checkpoint / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    tensors = {"model.embed_tokens.weight": TensorSize((64, 8), 1024)}
    for layer in range(2):
        for expert in range(4):
            for name in ("gate_proj", "up_proj", "down_proj"):
                key = f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"
                tensors[key] = TensorSize((16, 8), 256)
    tensors["mtp.layers.0.mlp.experts.0.up_proj.weight"] = TensorSize((16, 8), 256)
    tensors["vision_tower.blocks.0.weight"] = TensorSize((16, 8), 256)
    shape = checkpoint_shape("x", tensors, config, kind="hub checkpoint", file_sizes=[9000, 400])
    assert [each.num_experts for each in shape.layers] == [4, 4]
    assert shape.layers[0].payload_bytes == 768
    assert (shape.dense.every_token, shape.dense.by_row, shape.dense.unused) == (0, 1024, 512)
    assert shape.download is not None
    assert not shape.download.is_streamed
    assert stacked.download is None
    assert "--quantize 4" in shape.notes[0]


@pytest.mark.parametrize("kind", ["published", "hub checkpoint"])
def test_on_the_hub_headers_are_enough(
    hub: HubStub, tiny: Packed, tmp_path: Path, kind: str
) -> None:
    folder = tiny.container if kind == "published" else tiny.checkpoint
    hub.add("someone/model", folder)
    arguments = ("plan", "someone/model", "--no-speed", "--json")
    done = run_with_hub(hub, tmp_path, "kandiga_run", *arguments)
    assert done.returncode == 0, done.stderr
    remote = json.loads(done.stdout)
    local = json.loads(
        run_with_hub(hub, tmp_path, "kandiga_run", "plan", str(folder), *arguments[2:]).stdout
    )
    assert remote["model"]["kind"] == kind
    same = ("expert_bytes", "dense_bytes", "top_k", "architecture")
    assert [remote["model"][key] for key in same] == [local["model"][key] for key in same]
    weights = sum(
        each.stat().st_size for each in folder.iterdir() if each.suffix in (".kexp", ".safetensors")
    )
    assert remote["disk"]["download_bytes"] == weights
    assert local["disk"]["download_bytes"] == 0
    assert not list(tmp_path.rglob("*.safetensors"))
    # The guess of a header is 1 MiB a file.
    assert hub.sent_bytes() < min(weights, (1 << 20) + 100_000) + 100_000


@pytest.mark.parametrize(
    ("model", "code", "wanted"),
    [
        ("qwen9", 1, "no preset (there are qwen3.5-35b-a3b"),
        ("someone/nothing", 3, "the Hub has no such repository"),
        ("someone/notes", 1, "not a model that can be packed"),
        ("someone/dense", 1, "no routed experts among its 1 tensors"),
        ("someone/torn", 1, "model.safetensors"),
    ],
)
def test_what_cannot_be_planned(
    hub: HubStub, tmp_path: Path, model: str, code: int, wanted: str
) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2}
    folders = {"notes": {}, "dense": {"config.json": json.dumps(config).encode()}}
    header = json.dumps(
        {"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    ).encode()
    folders["dense"]["model.safetensors"] = struct.pack("<Q", len(header)) + header + bytes(16)
    folders["torn"] = {**folders["dense"], "model.safetensors": b"\x04\0\0\0\0\0\0\0[1]]"}
    for name, files in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "README.md").write_text("x")
        for file, data in files.items():
            (folder / file).write_bytes(data)
        hub.add(f"someone/{name}", folder)
    done = run_with_hub(hub, tmp_path / "hf", "kandiga_run", "plan", model, "--no-speed")
    assert done.returncode == code, done.stderr
    assert wanted in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_gguf_file_is_packed_first(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(RunError, match="pack it with `kandiga-pack convert"):
        find_shape(str(path))


@pytest.mark.parametrize(
    "header", [b"[]", b'{"a": 1}', b'{"a": {"shape": [1]}}', b"\xff", b'{"a": {"shape": 3}}']
)
def test_headers_that_are_none(header: bytes) -> None:
    with pytest.raises(RunError, match="not that of a safetensors file"):
        parse_header(header, "x")


def test_engines_by_architecture() -> None:
    assert engine_for("qwen3_5_moe") == "native"
    assert engine_for("olmoe") == "mlx"
    assert engine_for("llama") is None
    assert engine_for("../x") is None
