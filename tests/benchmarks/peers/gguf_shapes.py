"""What a GGUF says about a model, from the config of the same model as we hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter

Config = Mapping[str, Any]

# How Qwen3.5 divides the rotated half of a head among the three axes of a picture; text has one
# position for all of them.
_QWEN3_5_ROPE_SECTIONS = [11, 11, 10, 0]


class UnknownShapeError(ValueError):
    """No GGUF of this architecture is written here."""


def architecture(config: Config) -> MODEL_ARCH:
    """Return the GGUF architecture; UnknownShapeError when there is none."""
    model_type = config["model_type"]
    if model_type not in _ARCHITECTURES:
        raise UnknownShapeError(
            f"{model_type}: no GGUF of this architecture is written here, only of "
            f"{', '.join(_ARCHITECTURES)}; use a container of one of these"
        )
    return _ARCHITECTURES[model_type][0]


def writer_for(config: Config, path: str) -> GGUFWriter:
    """Return a writer that has been told everything but the tensors.

    Args:
        config: config.json of an mlx-lm model.
        path: where the file will be.
    """
    arch = architecture(config)
    text = text_config(config)
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch])
    writer.add_name(f"synthetic {config['model_type']}")
    # Without a vocabulary: what is measured computes with tokens, not with text.
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(text["vocab_size"])
    _add_sizes(writer, text)
    _ARCHITECTURES[config["model_type"]][1](writer, text)
    return writer


def text_config(config: Config) -> Config:
    """Return the part of a config that describes the language model."""
    return config.get("text_config") or config


def _add_sizes(writer: GGUFWriter, text: Config) -> None:
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text.get("intermediate_size", text["moe_intermediate_size"]))
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_expert_count(text["num_experts"])
    writer.add_expert_used_count(text["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(text["moe_intermediate_size"])


def _add_qwen3(writer: GGUFWriter, text: Config) -> None:
    writer.add_rope_freq_base(text["rope_theta"])


def _add_qwen3_5(writer: GGUFWriter, text: Config) -> None:
    rope = text["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(text["head_dim"] * rope["partial_rotary_factor"]))
    writer.add_rope_dimension_sections(_QWEN3_5_ROPE_SECTIONS)
    writer.add_expert_shared_feed_forward_length(text["shared_expert_intermediate_size"])
    writer.add_full_attention_interval(text["full_attention_interval"])
    writer.add_ssm_conv_kernel(text["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(text["linear_key_head_dim"])
    writer.add_ssm_group_count(text["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(text["linear_num_value_heads"])
    writer.add_ssm_inner_size(text["linear_value_head_dim"] * text["linear_num_value_heads"])


_ARCHITECTURES: dict[str, tuple[MODEL_ARCH, Callable[[GGUFWriter, Config], None]]] = {
    "qwen3_moe": (MODEL_ARCH.QWEN3MOE, _add_qwen3),
    "qwen3_5_moe": (MODEL_ARCH.QWEN35MOE, _add_qwen3_5),
}
