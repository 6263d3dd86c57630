"""GGUF metadata as the config.json that mlx-lm expects, one function per architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf.reader import GgufModel

# Above any model's heads, widths and counts, and small enough to allocate an index array of.
MAX_SIZE = 1 << 24

# Hyper-parameters that change what the model computes and that none of the families here has.
# A file that sets one to anything but its neutral value is not the model its name says.
_NEUTRAL = {
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "router_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
}


class Hyperparameters:
    """Typed access to the `<architecture>.*` keys of a GGUF."""

    def __init__(self, model: GgufModel) -> None:
        self.path: Path = model.paths[0]
        self.metadata: Mapping[str, Any] = model.metadata
        self.architecture: str = self._typed("general.architecture", str)
        for key, neutral in _NEUTRAL.items():
            value = self.metadata.get(f"{self.architecture}.{key}", neutral[0])
            if value not in neutral:
                raise PackError(
                    f"{self.path.name}: {self.architecture}.{key} is {value!r}; only "
                    f"{neutral[-1]!r} is supported. Use the model's MLX checkpoint"
                )

    def _typed(self, key: str, *types: type) -> Any:
        if key not in self.metadata:
            raise PackError(
                f"{self.path.name}: metadata key {key} is missing. "
                "Convert the model again with a current llama.cpp"
            )
        value = self.metadata[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join(t.__name__ for t in types)
            raise PackError(f"{self.path.name}: {key} is {str(value)[:60]!r}, {wanted} is wanted")
        return value

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.metadata

    def count(self, key: str, default: int | None = None, *, limit: int = MAX_SIZE) -> int:
        """A whole number from 1 to `limit` (`default` where the key is missing)."""
        if default is not None and not self.has(key):
            return default
        value: int = self._typed(f"{self.architecture}.{key}", int)
        if not 1 <= value <= limit:
            raise PackError(
                f"{self.path.name}: {self.architecture}.{key} is {value}, 1 to {limit} wanted"
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number kept as float32, in its shortest decimal form: 1e-05, not 9.9999...e-06."""
        if default is not None and not self.has(key):
            return default
        value = self._typed(f"{self.architecture}.{key}", float, int)
        return float(str(np.float32(value)))

    def array(self, key: str, default: list[int]) -> list[int]:
        key = f"{self.architecture}.{key}"
        return list(self._typed(key, list)) if key in self.metadata else default

    def text(self, key: str, default: str) -> str:
        return str(self._typed(f"{self.architecture}.{key}", str)) if self.has(key) else default

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers; llama.cpp also counts the multi-token-prediction blocks at the end."""
        layers = self.count("block_count") - self._predict_layers
        if layers < 1:
            raise PackError(f"{self.path.name}: no layers besides the nextn_predict_layers")
        return layers

    @property
    def _predict_layers(self) -> int:
        key = f"{self.architecture}.nextn_predict_layers"
        return int(self._typed(key, int)) if key in self.metadata else 0

    @property
    def head_dim(self) -> int:
        heads, hidden_size = self.count("attention.head_count"), self.count("embedding_length")
        head_dim = self.count("attention.key_length", hidden_size // heads)
        if head_dim < 2 or head_dim % 2 or heads * head_dim > MAX_SIZE:
            raise PackError(
                f"{self.path.name}: {heads} heads of {head_dim} dimensions for hidden_size "
                f"{hidden_size}; an even head_dim is wanted. The file's metadata is damaged"
            )
        return head_dim


def base_config(hp: Hyperparameters, vocab_size: int, *, tied: bool) -> dict[str, Any]:
    """Return what all families share."""
    if hp.has("attention.value_length") and hp.count("attention.value_length") != hp.head_dim:
        raise PackError(f"{hp.path.name}: keys and values of different width are not supported")
    heads = hp.count("attention.head_count")
    return {
        "hidden_act": "silu",
        "hidden_size": hp.count("embedding_length"),
        "max_position_embeddings": hp.count("context_length", limit=1 << 32),
        "num_attention_heads": heads,
        "num_hidden_layers": hp.num_hidden_layers,
        "num_key_value_heads": hp.count("attention.head_count_kv", heads),
        "rms_norm_eps": hp.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": tied,
        "vocab_size": vocab_size,
    }


def llama_config(hp: Hyperparameters, vocab_size: int, *, tied: bool) -> dict[str, Any]:
    """`llama` without experts: the dense family, source of the demo model."""
    _no_rope_scaling(hp)
    _whole_head_rope(hp)
    return {
        **base_config(hp, vocab_size, tied=tied),
        "architectures": ["LlamaForCausalLM"],
        "head_dim": hp.head_dim,
        "intermediate_size": hp.count("feed_forward_length"),
        "model_type": "llama",
        "rope_theta": hp.real("rope.freq_base", 10000.0),
    }


def mixtral_config(hp: Hyperparameters, vocab_size: int, *, tied: bool) -> dict[str, Any]:
    """`llama` with experts: Mixtral."""
    _no_rope_scaling(hp)
    _whole_head_rope(hp)
    config = base_config(hp, vocab_size, tied=tied)
    if hp.head_dim * config["num_attention_heads"] != config["hidden_size"]:
        raise PackError(
            f"{hp.path.name}: head_dim {hp.head_dim} x {config['num_attention_heads']} heads is "
            f"not hidden_size {config['hidden_size']}, as mixtral has it"
        )
    return {
        **config,
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": hp.count(
            "expert_feed_forward_length", hp.count("feed_forward_length")
        ),
        "model_type": "mixtral",
        "num_experts_per_tok": hp.count("expert_used_count"),
        "num_local_experts": hp.count("expert_count"),
        "rope_theta": hp.real("rope.freq_base", 10000.0),
    }


def qwen3_moe_config(hp: Hyperparameters, vocab_size: int, *, tied: bool) -> dict[str, Any]:
    """`qwen3moe`."""
    _whole_head_rope(hp)
    return {
        **base_config(hp, vocab_size, tied=tied),
        **_qwen_experts(hp),
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": hp.head_dim,
        "model_type": "qwen3_moe",
        "rope_scaling": _rope_scaling(hp),
        "rope_theta": hp.real("rope.freq_base", 10000.0),
    }


def qwen3_next_config(hp: Hyperparameters, vocab_size: int, *, tied: bool) -> dict[str, Any]:
    """`qwen3next`."""
    return {
        **base_config(hp, vocab_size, tied=tied),
        **_qwen_experts(hp),
        **_linear_attention(hp),
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": False,
        "head_dim": hp.head_dim,
        "model_type": "qwen3_next",
        "partial_rotary_factor": _partial_rotary_factor(hp),
        "rope_scaling": _rope_scaling(hp),
        "rope_theta": hp.real("rope.freq_base", 10000.0),
        "shared_expert_intermediate_size": hp.count("expert_shared_feed_forward_length"),
    }


def qwen3_5_moe_config(hp: Hyperparameters, vocab_size: int, *, tied: bool) -> dict[str, Any]:
    """`qwen35moe`: the text model, under `text_config` as in the multimodal checkpoints."""
    text_config = {
        **base_config(hp, vocab_size, tied=tied),
        **_qwen_experts(hp),
        **_linear_attention(hp),
        "attention_bias": False,
        "head_dim": hp.head_dim,
        "model_type": "qwen3_5_moe_text",
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": hp.array("rope.dimension_sections", [11, 11, 10])[:3],
            "partial_rotary_factor": _partial_rotary_factor(hp),
            "rope_theta": hp.real("rope.freq_base", 10000.0),
            "rope_type": "default",
        },
        "shared_expert_intermediate_size": hp.count("expert_shared_feed_forward_length"),
    }
    _no_rope_scaling(hp)
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": text_config,
        "tie_word_embeddings": tied,
    }


def _qwen_experts(hp: Hyperparameters) -> dict[str, Any]:
    moe_intermediate_size = hp.count("expert_feed_forward_length")
    return {
        "decoder_sparse_step": 1,
        "intermediate_size": hp.count("feed_forward_length", moe_intermediate_size),
        "mlp_only_layers": [],
        "moe_intermediate_size": moe_intermediate_size,
        # The key is optional because llama.cpp normalizes in these families without asking.
        "norm_topk_prob": bool(hp.metadata.get(f"{hp.architecture}.expert_weights_norm", True)),
        "num_experts": hp.count("expert_count"),
        "num_experts_per_tok": hp.count("expert_used_count"),
    }


def _linear_attention(hp: Hyperparameters) -> dict[str, Any]:
    num_key_heads, num_value_heads = hp.count("ssm.group_count"), hp.count("ssm.time_step_rank")
    key_head_dim, value_width = hp.count("ssm.state_size"), hp.count("ssm.inner_size")
    if (
        num_value_heads % num_key_heads
        or value_width % num_value_heads
        or num_key_heads * key_head_dim > MAX_SIZE
    ):
        raise PackError(
            f"{hp.path.name}: linear attention with {num_key_heads} key heads of {key_head_dim}, "
            f"{num_value_heads} value heads and inner_size {value_width}: each must be a "
            "multiple of the number of heads before. The file's metadata is damaged"
        )
    return {
        "full_attention_interval": hp.count("full_attention_interval", 4),
        "linear_conv_kernel_dim": hp.count("ssm.conv_kernel"),
        "linear_key_head_dim": key_head_dim,
        "linear_num_key_heads": num_key_heads,
        "linear_num_value_heads": num_value_heads,
        "linear_value_head_dim": value_width // num_value_heads,
    }


def _partial_rotary_factor(hp: Hyperparameters) -> float:
    return hp.count("rope.dimension_count", hp.head_dim) / hp.head_dim


def _whole_head_rope(hp: Hyperparameters) -> None:
    rotated = hp.count("rope.dimension_count", hp.head_dim)
    if rotated != hp.head_dim:
        raise PackError(
            f"{hp.path.name}: {rotated} of {hp.head_dim} head dimensions are rotated; "
            f"{hp.architecture} rotates all of them in mlx-lm"
        )


def _rope_scaling(hp: Hyperparameters) -> dict[str, Any] | None:
    kind = hp.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise PackError(
            f"{hp.path.name}: {hp.architecture}.rope.scaling.type is {kind!r}; none, "
            "linear and yarn are supported"
        )
    scaling: dict[str, Any] = {"factor": hp.real("rope.scaling.factor"), "rope_type": kind}
    if kind == "yarn":
        if hp.real("rope.scaling.attn_factor", 1.0) != 1.0:
            raise PackError(
                f"{hp.path.name}: rope.scaling.attn_factor other than 1 is not supported"
            )
        scaling |= {
            "beta_fast": hp.real("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": hp.real("rope.scaling.yarn_beta_slow", 1.0),
            "original_max_position_embeddings": hp.count(
                "rope.scaling.original_context_length", limit=1 << 32
            ),
        }
    return scaling


def _no_rope_scaling(hp: Hyperparameters) -> None:
    if _rope_scaling(hp) is not None:
        raise PackError(
            f"{hp.path.name}: {hp.architecture}.rope.scaling.type is "
            f"{hp.text('rope.scaling.type', 'none')!r}, which mlx-lm does not apply in this "
            "family. Use a GGUF without it"
        )
