"""What the native engine does not compute is refused by name, never computed differently."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import make_checkpoint
from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError
from packed import PackedModels, pack_checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

CONFIGS = {
    "mixtral, rope scaling": ("mixtral", {"rope_scaling": YARN}, "rope type 'yarn'"),
    "mixtral, linear rope": (
        "mixtral",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope type 'linear'",
    ),
    "mixtral, sliding window": ("mixtral", {"sliding_window": 128}, "sliding_window is 128"),
    "mixtral, activation": ("mixtral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "qwen3_moe, sliding window": (
        "qwen3_moe",
        {"use_sliding_window": True},
        "use_sliding_window is True",
    ),
    "qwen3_moe, rope": ("qwen3_moe", {"rope_scaling": YARN}, "rope type 'yarn'"),
    "qwen3_next, rope": ("qwen3_next", {"rope_scaling": YARN}, "rope type 'yarn'"),
    "qwen3_next, layers": (
        "qwen3_next",
        {"layer_types": ["full_attention", "linear_attention"]},
        "layer_types does not follow",
    ),
    "qwen3_5_moe, no gate": ("qwen3_5_moe", {"attn_output_gate": False}, "attn_output_gate"),
    "qwen3_5_moe, heads": ("qwen3_5_moe", {"linear_num_key_heads": 3}, "not a multiple"),
    "wrong size": ("qwen3_moe", {"num_attention_heads": 8}, r"q_proj.*the config asks for"),
    "not a number": ("qwen3_moe", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    "missing": ("qwen3_moe", {"vocab_size": None}, "vocab_size is None, wanted"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_values(tmp_path: Path, name: str) -> None:
    family, changes, message = CONFIGS[name]
    folder = make_checkpoint(tmp_path / "checkpoint", family)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.get("text_config", config).update(changes)
    path.write_text(json.dumps(config))
    refused(pack_checkpoint(folder).container, message)


def test_a_tensor_without_a_place(packed: PackedModels) -> None:
    extra = {"model.layers.0.self_attn.q_proj.bias": np.zeros(128, np.float32)}
    refused(packed("qwen3_moe", extra_tensors=extra).container, r"q_proj\.bias.*--engine mlx")


def test_a_missing_bias(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "qwen3_next")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_bias": True}))
    refused(pack_checkpoint(folder).container, r"q_proj\.bias: no such tensor")


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_quantization_modes(packed: PackedModels, mode: str) -> None:
    bits = {"mxfp4": 4, "mxfp8": 8}[mode]
    container = packed("mixtral", mode=mode, bits=bits, group_size=32).container
    refused(container, "use --engine mlx")


def test_an_architecture_it_does_not_know(packed: PackedModels) -> None:
    refused(packed("olmoe").container, "'olmoe'.*mixtral, qwen3_moe.*--engine mlx")


@pytest.mark.parametrize("choice", [0, 9, -1])
def test_an_impossible_number_of_experts(packed: PackedModels, choice: int) -> None:
    refused(packed("mixtral").container, "1 to 8 experts", num_experts_per_token=choice)


def refused(container: Path, message: str, **options: Any) -> None:
    with pytest.raises(RunError, match=message) as caught:
        load_engine(container, engine="native", **options)
    assert "\n" not in str(caught.value)
