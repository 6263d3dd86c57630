"""Tiny GGUF files, written with the gguf package from MLX tensors as llama.cpp's converter would.

The reorderings are written here the way the converter states them (reshape, swap, reshape), apart
from and in the other direction than kandiga_pack's, so that a mistake in one shows.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import pre_tokenizers

from checkpoints import make_checkpoint

Tensors = dict[str, np.ndarray]

ARCHITECTURES = {
    "llama": "llama",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_5_moe": "qwen35moe",
}
# Three value heads a key head and other numbers of heads than of heads a group: a transposed
# reordering gives other values. Heads of 32 columns, so that blocks can move whole.
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
_MIXTRAL_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class TinyModel:
    """A random model: flat config (the text part) and float32 tensors under their MLX names."""

    family: str
    config: dict[str, Any]
    tensors: Tensors


def make_model(family: str, folder: Path, overrides: Mapping[str, Any] | None = None) -> TinyModel:
    """Return a random model of a family; `folder` takes its checkpoint."""
    if family == "llama":
        return TinyModel(family, _LLAMA, _random_llama())
    linear = LINEAR_ATTENTION if family in ("qwen3_next", "qwen3_5_moe") else {}
    make_checkpoint(folder, family, bits=None, overrides={**linear, **(overrides or {})})
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: np.array(t) for name, t in mx.load(str(folder / "model.safetensors")).items()}
    return TinyModel(family, config.get("text_config", config), tensors)


def _random_llama() -> Tensors:
    model_class, args_class = _get_classes(_LLAMA)
    mx.random.seed(0)
    model = model_class(args_class.from_dict(_LLAMA))
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def write_gguf(
    path: Path,
    model: TinyModel,
    kind: GGMLQuantizationType,
    *,
    fuse_gate_up: bool = False,
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
    edit: Callable[[GGUFWriter], None] | None = None,
) -> Tensors:
    """Write `model` and return what a reader must give back: float32 under MLX names.

    Args:
        kind: of every matrix; vectors and routers stay F32, as llama.cpp has them.
        fuse_gate_up: store gate and up of the experts as one tensor.
        kinds: other types for single GGUF tensors.
        edit: adds metadata and tensors of its own.
    """
    writer = GGUFWriter(path, ARCHITECTURES[model.family])
    write_hyperparameters(writer, model)
    write_vocabulary(writer, model.config["vocab_size"])
    if edit is not None:
        edit(writer)
    expected: Tensors = {}
    stored: Tensors = {}
    own_kinds: dict[str, GGMLQuantizationType] = {}
    for name, tensor in model.tensors.items():
        expected[name] = tensor
        for gguf_name, data in converted(model, name, tensor).items():
            is_matrix = (
                data.ndim >= 2
                and "conv1d" not in name
                and not gguf_name.endswith("ffn_gate_inp.weight")
            )
            default = kind if is_matrix else GGMLQuantizationType.F32
            own_kinds[gguf_name] = (kinds or {}).get(gguf_name, default)
            stored[gguf_name] = data
            expected[name] = rounded(tensor, own_kinds[gguf_name])
    if fuse_gate_up:
        _fuse_gate_up(stored, own_kinds)
    for gguf_name, data in stored.items():
        quantized = gguf.quants.quantize(data, own_kinds[gguf_name])
        writer.add_tensor(gguf_name, quantized, raw_dtype=own_kinds[gguf_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def rounded(tensor: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """What is left of a tensor after quantization, by the gguf package."""
    return gguf.quants.dequantize(gguf.quants.quantize(tensor, kind), kind)


def converted(model: TinyModel, name: str, tensor: np.ndarray) -> Tensors:
    """The GGUF tensors that llama.cpp's converter makes of one MLX tensor."""
    config = model.config
    if name.endswith("in_proj_qkvz.weight"):
        qkv, z = _split_qkvz(config, tensor)
        block = name.split(".")[2]
        return {f"blk.{block}.attn_qkv.weight": qkv, f"blk.{block}.attn_gate.weight": z}
    gguf_name = gguf_tensor_name(model, name)
    if model.family in ("llama", "mixtral") and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
        halves = tensor.reshape(heads, 2, -1, tensor.shape[-1])
        return {gguf_name: halves.swapaxes(1, 2).reshape(tensor.shape)}
    if model.family == "qwen3_5_moe" and ".linear_attn." in name:
        tensor = _tile_value_heads(config, name, tensor)
    if name.endswith(".A_log"):
        return {gguf_name: -np.exp(tensor)}
    if "conv1d" in name or "shared_expert_gate" in name:
        return {gguf_name: tensor.squeeze()}
    return {gguf_name: tensor}


def gguf_tensor_name(model: TinyModel, name: str) -> str:
    """The gguf package's own name for a tensor, by the name it has on Hugging Face."""
    architecture = next(
        key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == ARCHITECTURES[model.family]
    )
    names = gguf.get_tensor_name_map(architecture, model.config["num_hidden_layers"])
    hf_name = name.removeprefix("language_model.").replace("dt_bias", "dt_proj.bias")
    if "block_sparse_moe.switch_mlp" in hf_name:
        layer, projection = name.split(".")[2], name.split(".")[-2]
        hf_name = f"layers.{layer}.feed_forward.experts.{_MIXTRAL_NAMES[projection]}.weight"
    hf_name = hf_name.replace("switch_mlp", "experts")
    found = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
    assert found, f"gguf has no name for {hf_name}"
    return found


def _split_qkvz(config: Mapping[str, Any], tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    key_heads, key_dim = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] // key_heads * config["linear_value_head_dim"]
    by_head = tensor.reshape(key_heads, 2 * key_dim + 2 * values, -1)
    edges = [key_dim, 2 * key_dim, 2 * key_dim + values]
    q, k, v, z = (part.reshape(-1, tensor.shape[-1]) for part in np.split(by_head, edges, axis=1))
    return np.concatenate([q, k, v]), z


def _tile_value_heads(config: Mapping[str, Any], name: str, tensor: np.ndarray) -> np.ndarray:
    width = config["linear_value_head_dim"]
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        keys = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
        return np.concatenate([tensor[:keys], _tiled(config, tensor[keys:], 0, width)])
    if name.endswith("in_proj_z.weight"):
        return _tiled(config, tensor, 0, width)
    if name.endswith("out_proj.weight"):
        return _tiled(config, tensor, 1, width)
    if name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")):
        return _tiled(config, tensor, 0, 1)
    return tensor


def _tiled(config: Mapping[str, Any], tensor: np.ndarray, axis: int, width: int) -> np.ndarray:
    key_heads = config["linear_num_key_heads"]
    per_key = config["linear_num_value_heads"] // key_heads
    shape = tensor.shape
    split = tensor.reshape(*shape[:axis], key_heads, per_key, width, *shape[axis + 1 :])
    return np.ascontiguousarray(split.swapaxes(axis, axis + 1)).reshape(shape)


def _fuse_gate_up(stored: Tensors, kinds: dict[str, GGMLQuantizationType]) -> None:
    for gate_name in [name for name in stored if "ffn_gate_exps" in name]:
        up_name = gate_name.replace("gate", "up")
        fused_name = gate_name.replace("gate", "gate_up")
        stored[fused_name] = np.concatenate([stored.pop(gate_name), stored.pop(up_name)], axis=1)
        kinds[fused_name] = kinds[gate_name]


def write_hyperparameters(writer: GGUFWriter, model: TinyModel) -> None:
    """Write the keys that llama.cpp's converter writes for the family."""
    config = model.config
    rope = config.get("rope_parameters", config)
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if model.family != "llama":
        writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if "linear_num_key_heads" in config:
        value_heads = config["linear_num_value_heads"]
        writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(config["linear_key_head_dim"])
        writer.add_ssm_group_count(config["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(value_heads)
        writer.add_ssm_inner_size(config["linear_value_head_dim"] * value_heads)
        writer.add_full_attention_interval(config["full_attention_interval"])
    if "mrope_section" in rope:
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])


def write_vocabulary(writer: GGUFWriter, size: int) -> None:
    """A byte-level vocabulary of `size` tokens with one merge; the last three are special."""
    learned = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    filler = [f"[PAD{i}]" for i in range(size - len(learned) - len(special))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*learned, *filler, *special])
    types = [TokenType.NORMAL] * len(learned) + [TokenType.UNUSED] * len(filler)
    writer.add_token_types([*types, *([TokenType.CONTROL] * len(special))])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(size - 1)
