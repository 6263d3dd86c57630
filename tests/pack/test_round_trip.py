"""Convert, export: every tensor and every file of the checkpoint comes back, bit for bit."""

import filecmp
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from checkpoints import FAMILIES, make_checkpoint
from formats import open_set
from kandiga_pack import convert, export, verify


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    _, differing, unreadable = filecmp.cmpfiles(one, other, names, shallow=False)
    assert not differing
    assert not unreadable


def round_trip(source: Path, folder: Path) -> Path:
    convert(source, folder / "packed")
    summary = export(folder / "packed", folder / "exported")
    assert summary.identical_files == summary.num_files
    assert_same_files(source, folder / "exported")
    assert verify(folder / "packed", against=source).ok
    return folder / "packed"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", family, dtype="bfloat16")
    packed = round_trip(source, tmp_path)
    with safe_open(source / "model.safetensors", framework="numpy") as file:
        stacks = [name for name in file.keys() if is_stack(name)]  # noqa: SIM118 -- not a mapping
    with open_set(packed) as opened:
        assert not [name for name in opened.dense if is_stack(name)]
        parts = sum(len(opened.layout(layer).parts) for layer in opened.layers)
    assert parts == len(stacks)


def is_stack(name: str) -> bool:
    """By mlx-lm's module names alone; deepseek_v41's o_a_proj is attention, stacked by group."""
    projections = "gate_proj|up_proj|down_proj|fc1|fc2"
    return re.search(rf"\.(switch_mlp|switch_glu|experts)\.({projections})\.", name) is not None


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [
        *[("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)],
        ("affine", 4, 128),
        ("mxfp4", 4, 32),
        ("mxfp8", 8, 32),
        ("nvfp4", 4, 16),
        ("none", None, 32),
    ],
)
def test_every_coding(mode: str, bits: int | None, group_size: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "moe_intermediate_size": 128}
    options = {} if bits is None else {"mode": mode}
    source = make_checkpoint(
        tmp_path / "source",
        "qwen3_moe",
        bits=bits,
        group_size=group_size,
        overrides=sizes,
        dtype="float16",
        **options,
    )
    packed = round_trip(source, tmp_path)
    with open_set(packed) as opened:
        part = opened.layout(0).part("up", "weight")
    assert part is not None
    assert (part.mode, part.bits or None) == (mode, bits)
    assert part.group_size == (group_size if bits else 0)


def test_a_scale_for_each_expert(tmp_path: Path) -> None:
    """nvfp4 may carry one float32 an expert: a part without axes."""
    prefix = "model.layers.{}.mlp.switch_mlp.{}_proj.global_scale"
    scales = {
        prefix.format(layer, name): np.arange(8, dtype=np.float32)
        for layer in (0, 1)
        for name in ("gate", "up", "down")
    }
    source = make_checkpoint(
        tmp_path / "source",
        "qwen3_moe",
        mode="nvfp4",
        bits=4,
        group_size=16,
        extra_tensors=scales,
    )
    (source / "model.safetensors.index.json").unlink()  # it does not list the extra tensors
    packed = round_trip(source, tmp_path)
    with open_set(packed) as opened:
        part = opened.layout(1).part("up", "global_scale")
    assert part is not None
    assert part.shape == ()


def test_sizes_that_bite(tmp_path: Path) -> None:
    """7 experts, an odd hidden size, and blocks far from a multiple of 16 KiB."""
    sizes = {"hidden_size": 96, "num_experts": 7, "num_experts_per_tok": 7}
    round_trip(make_checkpoint(tmp_path / "source", "qwen3_moe", overrides=sizes), tmp_path)


def test_mixed_bits(tmp_path: Path) -> None:
    """An 8-bit router beside experts of 4 and 6 bits."""

    def predicate(path: str, _module: object) -> dict[str, int]:
        bits = 8 if path.endswith("mlp.gate") else 6 if "layers.1" in path else 4
        return {"bits": bits, "group_size": 32}

    source = make_checkpoint(tmp_path / "source", "qwen3_moe", quant_predicate=predicate)
    packed = round_trip(source, tmp_path)
    with open_set(packed) as opened:
        weights = [opened.layout(layer).part("down", "weight") for layer in opened.layers]
    assert [weight.bits for weight in weights if weight] == [4, 6]


def test_vision_and_prediction_heads_come_back(tmp_path: Path) -> None:
    """Their stacks look like experts of the model, and must not be taken for them."""
    rng = np.random.default_rng(0)
    stack = rng.standard_normal((8, 16, 32)).astype(np.float32)
    extra = {
        "vision_tower.blocks.0.mlp.fc1.weight": stack,
        "vision_tower.blocks.0.mlp.fc2.weight": stack,
        "mtp.layers.0.mlp.switch_mlp.gate_proj.weight": stack,
        "mtp.layers.0.mlp.switch_mlp.up_proj.weight": stack,
        "mtp.layers.0.mlp.switch_mlp.down_proj.weight": stack.swapaxes(1, 2).copy(),
        "model.layers.2.mlp.switch_mlp.up_proj.weight": stack,
        "vision_tower.scalar": np.float32(0.5).reshape(()),
        "vision_tower.empty": np.zeros((0, 3), np.float32),
        "vision_tower.ids": np.arange(5, dtype=np.int64),
    }
    # Without this key, layer 2 of a model of two layers would be refused.
    overrides = {"num_nextn_predict_layers": 1}
    source = make_checkpoint(
        tmp_path / "source", "qwen3_5_moe", overrides=overrides, extra_tensors=extra
    )
    (source / "model.safetensors.index.json").unlink()  # it does not list the extra tensors
    packed = round_trip(source, tmp_path)
    with open_set(packed) as opened:
        assert extra.keys() <= opened.dense.keys()


def test_several_shards_on_both_sides(tmp_path: Path) -> None:
    """Two safetensors files in, one file of dense weights and one for each layer out."""
    source = split_in_two(make_checkpoint(tmp_path / "source", "mixtral"))
    summary = convert(source, tmp_path / "packed", shard_bytes=1 << 16)
    assert summary.num_shards == 3
    export(tmp_path / "packed", tmp_path / "exported")
    assert_same_files(source, tmp_path / "exported")


def split_in_two(folder: Path) -> Path:
    """Spread the tensors over two files as transformers does: other header order, other index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        chosen = {name: tensors[name] for name in part}
        save_file(chosen, folder / shard, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 12345}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_an_index_of_unknown_spelling_comes_back_in_meaning(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "mixtral")
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()), indent=7))
    convert(source, tmp_path / "packed")
    export(tmp_path / "packed", tmp_path / "exported")
    wanted = json.loads(index.read_text())["weight_map"]
    assert json.loads((tmp_path / "exported" / index.name).read_text())["weight_map"] == wanted


def test_no_index_gives_no_index(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "mixtral")
    (source / "model.safetensors.index.json").unlink()
    round_trip(source, tmp_path)


def test_a_header_of_unknown_spelling_gives_equal_tensors(tmp_path: Path) -> None:
    """Spaces in the header: the tensors come back, the file is spelled in mlx's way."""
    source = make_checkpoint(tmp_path / "source", "mixtral")
    file = source / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), indent=1).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    convert(source, tmp_path / "packed")
    summary = export(tmp_path / "packed", tmp_path / "exported")
    assert summary.identical_files == 0
    wanted, seen = load_file(file), load_file(tmp_path / "exported" / file.name)
    assert wanted.keys() == seen.keys()
    assert all(np.array_equal(wanted[name], seen[name]) for name in wanted)


def test_files_of_the_repository_come_along(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "mixtral")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("# A model\n")
    (source / "tokenizer.model").write_bytes(bytes(range(256)))
    (source / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (source / "pytorch_model.bin").write_bytes(b"the same weights again")
    (source / "consolidated.safetensors").write_bytes(b"and again")
    summary = convert(source, tmp_path / "packed")
    left_out = "left out, weights in another form: consolidated.safetensors, pytorch_model.bin"
    assert summary.notes == (left_out,)
    export(tmp_path / "packed", tmp_path / "exported")
    (source / ".gitattributes").unlink()
    (source / "pytorch_model.bin").unlink()
    (source / "consolidated.safetensors").unlink()
    assert_same_files(source, tmp_path / "exported")


def test_converting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "qwen3_next", dtype="bfloat16")
    convert(source, tmp_path / "first", shard_bytes=1 << 16)
    moved = tmp_path / "elsewhere" / "source"
    shutil.copytree(source, moved)
    convert(moved, tmp_path / "second", shard_bytes=1 << 16)
    assert_same_files(tmp_path / "first", tmp_path / "second")


def test_a_container_can_be_packed_again(tmp_path: Path) -> None:
    """Exported and converted once more it is the same container."""
    source = make_checkpoint(tmp_path / "source", "gpt_oss")
    packed = round_trip(source, tmp_path)
    convert(tmp_path / "exported", tmp_path / "again")
    assert_same_files(packed, tmp_path / "again")
