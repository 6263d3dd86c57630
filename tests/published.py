"""Turn tiny MLX checkpoints into the layouts that model makers publish, before mlx-lm's `sanitize`.

Experts one by one, fused, interleaved or transposed, convolutions the other way round, tensors of
a vision tower and a prediction head beside the language model: what a download looks like.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from checkpoints import make_checkpoint

Weights = dict[str, mx.array]


def make_published(folder: Path, layout: str) -> Path:
    """Write a bfloat16 checkpoint in a published layout, a key of PUBLISHERS, in two shards."""
    family = layout.partition(" ")[0]
    options: dict[str, Any] = {"bits": None}
    if layout == "gpt_oss mxfp4":
        options = {"bits": 4, "mode": "mxfp4", "quant_predicate": lambda path, _: "experts" in path}
    if family == "granitemoe":  # its 8-bit router wants groups of 64
        options["overrides"] = {"intermediate_size": 64}
    make_checkpoint(folder, family, dtype="bfloat16", **options)
    file = folder / "model.safetensors"
    weights = PUBLISHERS[layout](mx.load(str(file)))
    mx.eval(weights)
    file.unlink()
    _write_shards(folder, weights)
    _write_config(folder, layout)
    return folder


def _write_config(folder: Path, layout: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["torch_dtype"] = "bfloat16"
    if layout == "gpt_oss mxfp4":
        del config["quantization"]
        config["quantization_config"] = {"quant_method": "mxfp4"}
    if layout == "deepseek_v3 fp8":
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    path.write_text(json.dumps(config))


def _write_shards(folder: Path, weights: Weights) -> None:
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        chosen = {name: weights[name] for name in part}
        mx.save_safetensors(str(folder / shard), chosen, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _one_by_one(moe: str, names: dict[str, str]) -> Callable[[Weights], Weights]:
    """Unstack `*.{moe}.{gate_proj...}.weight` into `*.experts.E.{name}.weight`."""

    def publish(weights: Weights) -> Weights:
        out = {}
        for name, value in weights.items():
            head, _, tail = name.partition(f".{moe}.")
            if not tail:
                out[name] = value
                continue
            projection, role = tail.split(".")
            for expert in range(value.shape[0]):
                out[f"{head}.{EXPERTS.get(moe, 'experts')}.{expert}.{names[projection]}.{role}"] = (
                    value[expert]
                )
        return out

    return publish


EXPERTS = {"moe.switch_mlp": "moe.mlp", "block_sparse_moe.switch_mlp": "block_sparse_moe.experts"}
SAME = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
W123 = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def _qwen3_next(weights: Weights) -> Weights:
    weights = _one_by_one("switch_mlp", SAME)(weights)
    weights = {
        name: value.moveaxis(2, 1) if "conv1d.weight" in name else value
        for name, value in weights.items()
    }
    return weights | {"mtp.layers.0.mlp.experts.0.up_proj.weight": mx.ones((4, 8), mx.bfloat16)}


def _qwen3_5_moe(weights: Weights) -> Weights:
    out = {"model.visual.blocks.0.mlp.fc1.weight": mx.ones((8, 4, 2), mx.bfloat16)}
    for name, value in weights.items():
        if ".switch_mlp.up_proj" in name:
            continue
        if ".switch_mlp.gate_proj" in name:
            up = weights[name.replace("gate_proj", "up_proj")]
            name = name.replace("switch_mlp.gate_proj.weight", "experts.gate_up_proj")
            value = mx.concatenate([value, up], axis=-2)
        name = name.replace("switch_mlp.down_proj.weight", "experts.down_proj")
        if "conv1d.weight" in name:
            value = value.moveaxis(2, 1)
        out[name.replace("language_model.model", "model.language_model")] = value
    return out


def _gpt_oss_mxfp4(weights: Weights) -> Weights:
    """Interleave gate and up; packed words as (experts, rows, groups, 16) bytes."""
    suffixes = {"weight": "_blocks", "scales": "_scales", "bias": "_bias"}
    out = {}
    for name, value in weights.items():
        role = name.rpartition(".")[2]
        if ".experts.up_proj" in name:
            continue
        if ".experts." in name:
            if ".gate_proj" in name:
                up = weights[name.replace("gate_proj", "up_proj")]
                value = mx.stack([value, up], axis=2).flatten(1, 2)
            if role == "weight":
                value = value.view(mx.uint8).reshape(*value.shape[:2], -1, 16)
            name = name.replace(f"_proj.{role}", f"_proj{suffixes[role]}")
            name = name.replace("gate_proj", "gate_up_proj")
        out[name] = value
    return out


def _llama4(weights: Weights) -> Weights:
    out = {"vision_model.patch_embedding.linear.weight": mx.ones((4, 4), mx.bfloat16)}
    for name, value in weights.items():
        if ".experts.up_proj" in name:
            continue
        if ".experts.gate_proj" in name:
            up = weights[name.replace("gate_proj", "up_proj")]
            value = mx.concatenate([value, up], axis=1).swapaxes(1, 2)
            name = name.replace("gate_proj.weight", "gate_up_proj")
        elif ".experts.down_proj" in name:
            value = value.swapaxes(1, 2)
            name = name.replace("down_proj.weight", "down_proj")
        out[name] = value
    return out


def _granitemoe(weights: Weights) -> Weights:
    out = {}
    for name, value in weights.items():
        if ".switch_mlp.up_proj" in name:
            continue
        if ".switch_mlp.gate_proj" in name:
            up = weights[name.replace("gate_proj", "up_proj")]
            value = mx.concatenate([value, up], axis=1)
        name = name.replace("switch_mlp.gate_proj", "input_linear")
        out[name.replace("switch_mlp.down_proj", "output_linear")] = value
    return out


def _deepseek_v3(weights: Weights) -> Weights:
    out = {"model.layers.61.embed_tokens.weight": mx.ones((4, 4), mx.bfloat16)}
    for name, value in _one_by_one("mlp.switch_mlp", SAME)(weights).items():
        if name.endswith("unembed_out.weight"):
            continue
        if name.endswith("embed_q.weight"):
            other = weights[name.replace("embed_q", "unembed_out")]
            value = mx.concatenate([value.swapaxes(-1, -2), other], axis=1).flatten(0, 1)
            name = name.replace("embed_q", "kv_b_proj")
        out[name.replace(".experts.", ".mlp.experts.")] = value
    return out


def _deepseek_v3_fp8(weights: Weights) -> Weights:
    """8-bit floats with one scale for each 128 x 128 block; the bytes stand for themselves."""
    out = {}
    for name, value in _deepseek_v3(weights).items():
        if "_proj.weight" in name:
            rows, columns = value.shape
            out[name] = mx.to_fp8(value)
            out[f"{name}_scale_inv"] = mx.full((-(-rows // 128), -(-columns // 128)), 0.5)
        else:
            out[name] = value
    return out


def _step3p5(weights: Weights) -> Weights:
    renames = (
        (".mlp.switch_mlp.", ".moe."),
        (".mlp.gate.gate.", ".moe.gate."),
        (".mlp.gate.router_bias", ".moe.router_bias"),
        (".mlp.share_expert.", ".share_expert."),
    )
    out = {}
    for name, value in weights.items():
        for old, new in renames:
            name = name.replace(old, new)
        out[name] = value
    return out


PUBLISHERS: dict[str, Callable[[Weights], Weights]] = {
    "mixtral": _one_by_one("block_sparse_moe.switch_mlp", W123),
    "qwen3_moe": _one_by_one("switch_mlp", SAME),
    "qwen3_next": _qwen3_next,
    "qwen3_5_moe": _qwen3_5_moe,
    "olmoe": _one_by_one("switch_mlp", SAME),
    "gpt_oss mxfp4": _gpt_oss_mxfp4,
    "llama4": _llama4,
    "granitemoe": _granitemoe,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v3 fp8": _deepseek_v3_fp8,
    "phixtral": _one_by_one("moe.switch_mlp", {"fc1": "fc1", "fc2": "fc2"}),
    "nemotron_h": _one_by_one("switch_mlp", {"fc1": "up_proj", "fc2": "down_proj"}),
    "jamba": _one_by_one("switch_mlp", SAME),
    "step3p5": _step3p5,
}
