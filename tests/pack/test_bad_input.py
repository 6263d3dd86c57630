"""What is wrong with the input is one line and an exit code, and nothing is left behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import make_checkpoint
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode

INDEX = "model.safetensors.index.json"
STACK = "model.layers.1.mlp.switch_mlp"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", "qwen3_moe", dtype="float16")


def edit_tensors(source: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the weights of a checkpoint; its index goes, for it would tell on a missing tensor."""
    file = source / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "mlx"})
    (source / INDEX).unlink(missing_ok=True)


def edit_config(source: Path, **changes: object) -> None:
    path = source / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def truncate(source: Path) -> None:
    file = source / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def truncate_header(source: Path) -> None:
    os.truncate(source / "model.safetensors", 100)


def empty_shard(source: Path) -> None:
    os.truncate(source / "model.safetensors", 0)


def shard_of_the_index_missing(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (source / INDEX).write_text(json.dumps(index))


def tensor_of_the_index_missing(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = "model.safetensors"
    (source / INDEX).write_text(json.dumps(index))


def index_leaves_the_folder(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../model.safetensors"
    (source / INDEX).write_text(json.dumps(index))


def same_tensor_twice(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    name = "model.norm.weight"
    save_file({name: tensors[name]}, source / "model-extra.safetensors")


def projection_missing(source: Path) -> None:
    edit_tensors(
        source,
        lambda tensors: [
            tensors.pop(f"{STACK}.down_proj.{role}") for role in ("weight", "scales", "biases")
        ],
    )


def scales_missing(source: Path) -> None:
    edit_tensors(source, lambda tensors: tensors.pop(f"{STACK}.up_proj.scales"))


def biases_missing(source: Path) -> None:
    edit_tensors(source, lambda tensors: tensors.pop(f"{STACK}.up_proj.biases"))


def layer_missing(source: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(STACK)]:
            del tensors[name]

    edit_tensors(source, edit)


def dtype_of_scales(source: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        name = f"{STACK}.up_proj.scales"
        tensors[name] = tensors[name].view(np.int16)

    edit_tensors(source, edit)


def dtype_of_weight(source: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        name = f"{STACK}.up_proj.weight"
        tensors[name] = tensors[name].view(np.int32)

    edit_tensors(source, edit)


def experts_cut(source: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        name = f"{STACK}.up_proj.weight"
        tensors[name] = tensors[name][:7].copy()

    edit_tensors(source, edit)


def scales_of_another_shape(source: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        name = f"{STACK}.up_proj.scales"
        tensors[name] = tensors[name][:, :-1].copy()

    edit_tensors(source, edit)


def no_experts(source: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if ".switch_mlp." in name]:
            del tensors[name]

    edit_tensors(source, edit)


def no_config(source: Path) -> None:
    (source / "config.json").unlink()


def no_shards(source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / INDEX).unlink()


def config_is_not_json(source: Path) -> None:
    (source / "config.json").write_text('{"model_type": ')


def config_too_deep(source: Path) -> None:
    (source / "config.json").write_text("[" * 100_000)


BAD_SOURCES: dict[Callable[[Path], None], tuple[ExitCode, str]] = {
    truncate: (ExitCode.FAILED, "model.safetensors: not a whole safetensors file"),
    truncate_header: (ExitCode.FAILED, "not a whole safetensors file (100 bytes"),
    empty_shard: (ExitCode.FAILED, "not a whole safetensors file (0 bytes"),
    shard_of_the_index_missing: (
        ExitCode.UNREADABLE,
        "model-00002-of-00002.safetensors: no such file, though",
    ),
    tensor_of_the_index_missing: (ExitCode.FAILED, "tensor model.extra.weight is missing"),
    index_leaves_the_folder: (ExitCode.FAILED, "'../model.safetensors', expected a plain file"),
    same_tensor_twice: (ExitCode.FAILED, "is in both model-extra.safetensors and"),
    projection_missing: (ExitCode.FAILED, f"tensor {STACK}.down_proj.weight is missing"),
    scales_missing: (ExitCode.FAILED, f"tensor {STACK}.up_proj.scales is missing"),
    biases_missing: (ExitCode.FAILED, f"tensor {STACK}.up_proj.biases is missing"),
    layer_missing: (
        ExitCode.FAILED,
        "config.json says that layers 0-1 have experts, but no expert tensors were found for 1",
    ),
    dtype_of_scales: (ExitCode.FAILED, "up_proj.scales has dtype i16, expected bf16, f16 or f32"),
    dtype_of_weight: (ExitCode.FAILED, "up_proj.weight has dtype i32, expected u32"),
    experts_cut: (ExitCode.FAILED, "up_proj.weight holds 7 experts, but"),
    scales_of_another_shape: (ExitCode.FAILED, "up_proj.scales has shape (8, 31, 2), expected (8,"),
    no_experts: (ExitCode.FAILED, "no routed experts among"),
    no_config: (ExitCode.UNREADABLE, "config.json: no such file"),
    no_shards: (ExitCode.UNREADABLE, "no model*.safetensors in this folder"),
    config_is_not_json: (ExitCode.FAILED, "config.json: not valid JSON"),
    config_too_deep: (ExitCode.FAILED, "config.json: not valid JSON"),
}

BAD_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "num_experts": ({"num_experts": 9}, "holds 8 experts, but config.json says num_experts = 9"),
    "no num_experts": ({"num_experts": None}, "states no number of experts"),
    "num_experts in quotes": (
        {"num_experts": "8"},
        'config.json: num_experts = "8", expected an integer',
    ),
    "half a layer": (
        {"num_hidden_layers": 1.5},
        "config.json: num_hidden_layers = 1.5, expected an integer",
    ),
    "num_experts_per_tok": ({"num_experts_per_tok": None}, "how many experts a token uses"),
    "more layers": ({"num_hidden_layers": 3}, "no expert tensors were found for 2"),
    "fewer layers": (
        {"num_hidden_layers": 1},
        "_proj.weight is of layer 1, but config.json says 1 layers",
    ),
    # Counting them one by one would take all memory.
    "absurdly many layers": (
        {"num_hidden_layers": 10**15},
        "layers, but there are only 63 tensors",
    ),
    "decoder_sparse_step": (
        {"decoder_sparse_step": 0},
        "decoder_sparse_step = 0 does not say which of 2 layers have experts",
    ),
    "mlp_only_layers": (
        {"mlp_only_layers": [1]},
        "layers 1 have expert tensors, but config.json says that only layers 0",
    ),
    "hidden_size": ({"hidden_size": 128}, "of hidden size 64, but config.json says hidden_size"),
    "moe_intermediate_size": (
        {"moe_intermediate_size": 64},
        "intermediate size 32, but config.json says moe_intermediate_size = 64",
    ),
    "bits": (
        {"quantization": {"bits": 8, "group_size": 32}},
        "is affine 4-bit, group 32, but config.json says affine 8-bit, group 32",
    ),
    "bits of one tensor": (
        {"quantization": {"bits": 4, "group_size": 32, f"{STACK}.up_proj": {"bits": 5}}},
        f"{STACK}.up_proj is affine 4-bit, group 32, but config.json says affine 5-bit, group 32",
    ),
    "bits of the others": (
        {"quantization": {"bits": 8, "group_size": 32, "lm_head": {"bits": 4}}},
        "_proj is affine 4-bit, group 32, but config.json says affine 8-bit, group 32",
    ),
    "bits of one tensor under another prefix": (
        {
            "quantization": {
                "bits": 4,
                "group_size": 32,
                f"language_model.{STACK}.up_proj": {"bits": 5},
            }
        },
        f"{STACK}.up_proj is affine 4-bit, group 32, but config.json says affine 5-bit, group 32",
    ),
    "no quantization": ({"quantization": None, "quantization_config": None}, "has no quantization"),
    "model_type": ({"model_type": None}, "no model_type"),
}


def assert_refused(
    arguments: list[str], code: ExitCode, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert text in stderr
    assert stderr.startswith("kandiga-pack: ")
    assert stderr.count("\n") == 1, stderr


@pytest.mark.parametrize("damage", BAD_SOURCES, ids=lambda damage: damage.__name__)
def test_bad_source(
    damage: Callable[[Path], None],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(source)
    code, text = BAD_SOURCES[damage]
    assert_refused(["convert", str(source), str(tmp_path / "packed")], code, text, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_config_that_disagrees(
    case: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, text = BAD_CONFIGS[case]
    edit_config(source, **changes)
    arguments = ["convert", str(source), str(tmp_path / "packed")]
    assert_refused(arguments, ExitCode.FAILED, text, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_model_without_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    save_file({"model.norm.weight": np.ones(4, np.float32)}, source / "model.safetensors")
    assert_refused(
        ["convert", str(source), str(tmp_path / "packed")],
        ExitCode.FAILED,
        "no routed experts",
        capsys,
    )


def test_source_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(tmp_path / "nowhere"), str(tmp_path / "packed")]
    assert_refused(arguments, ExitCode.UNREADABLE, "no such file or folder", capsys)


def test_source_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    arguments = ["convert", str(tmp_path / "notes.txt"), str(tmp_path / "packed")]
    assert_refused(arguments, ExitCode.FAILED, "not a GGUF file", capsys)


@pytest.mark.parametrize("verb", ["convert", "export"])
def test_destination_exists(
    verb: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(source), str(tmp_path / "packed"), "--quiet"]) == ExitCode.OK
    from_, to = (source, "packed") if verb == "convert" else (tmp_path / "packed", "source")
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    arguments = [verb, str(from_), str(tmp_path / to)]
    assert_refused(arguments, ExitCode.FAILED, "already exists; remove it", capsys)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before


def test_destination_without_a_parent(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(source), str(tmp_path / "a" / "b")]
    assert_refused(arguments, ExitCode.UNREADABLE, "is not a folder; make it first", capsys)


def test_an_option_of_another_kind_of_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = str(tmp_path / "packed")
    for options, text in (
        (["--revision", "main"], "--revision is for Hub ids"),
        (["--group-size", "64"], "--group-size needs --quantize"),
        (["--shard-size", "nan"], "--shard-size nan: a size in GiB is wanted"),
        (["--shard-size", "inf"], "--shard-size inf: a size in GiB is wanted"),
    ):
        arguments = ["convert", str(source), packed, *options]
        assert_refused(arguments, ExitCode.USAGE, text, capsys)


def test_json_carries_the_error(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(source, num_experts=9)
    assert run(["convert", str(source), str(tmp_path / "packed"), "--json"]) == ExitCode.FAILED
    stdout, stderr = capsys.readouterr()
    answer = json.loads(stdout)
    assert answer["exit_code"] == 1
    assert answer["error"] in stderr


def test_debug_shows_the_traceback(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(source, num_experts=9)
    arguments = ["convert", str(source), str(tmp_path / "packed"), "--debug"]
    assert run(arguments) == ExitCode.FAILED
    stderr = capsys.readouterr().err
    assert stderr.startswith("Traceback")
    assert "holds 8 experts" in stderr.splitlines()[-1]


def test_bugs_are_one_line_too(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise LookupError("two\nlines")

    monkeypatch.setattr("kandiga_pack.commands.convert.convert", fail)
    assert run(["convert", str(source), str(tmp_path / "packed")]) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        "kandiga-pack: internal error: LookupError: two lines "
        "(--debug shows where; please report it)\n"
    )
