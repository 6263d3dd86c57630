"""Qwen3.5-MoE, text only: the layers of Qwen3-Next with separate input projections.

The language model's config may be nested in text_config, and its tensors have a prefix that
depends on the program that wrote the checkpoint. One recipe covers all sizes.
"""

from __future__ import annotations

from kandiga_run.errors import RunError
from kandiga_run.native.architectures.qwen3_next import HybridParts
from kandiga_run.native.blocks.gated_delta import SeparateProjection
from kandiga_run.native.blocks.rope import Rope, rope_number, rope_scale
from kandiga_run.native.builder import Builder
from kandiga_run.native.decoder import Decoder
from kandiga_run.native.weights import Weights

#: (trunk, head) of the language model, as mlx-lm, Transformers and text-only writers name them.
_PREFIXES = (
    ("language_model.model", "language_model.lm_head"),
    ("model.language_model", "lm_head"),
    ("model", "lm_head"),
)
#: Vision tower and multi-token prediction head: packed, not computed.
_OTHER_MODULES = ("vision_tower.", "model.visual.", "visual.", "mtp.", "language_model.mtp.")


def build(builder: Builder) -> Decoder:
    """Return the decoder; RunError names a config value or tensor that does not fit."""
    config, weights = builder.model.text_config, builder.weights
    config.require("hidden_act", "silu")
    config.require("attn_output_gate", True)
    hidden_size = config.positive("hidden_size")
    num_heads = config.positive("num_attention_heads")
    head_dim = config.positive("head_dim", hidden_size // num_heads)
    rope = Rope(
        int(head_dim * rope_number(config, "partial_rotary_factor", 0.25)),
        rope_number(config, "rope_theta", 100000.0),
        scale=rope_scale(config),
    )
    trunk, head = _find_language_model(weights)
    weights.ignore(*_OTHER_MODULES)
    parts = HybridParts(builder, config, rope, SeparateProjection, norm_topk_prob=True)
    eps = config.number("rms_norm_eps", 1e-6)
    return builder.decoder(parts.layers(trunk), eps, trunk=trunk, head=head)


def _find_language_model(weights: Weights) -> tuple[str, str]:
    for trunk, head in _PREFIXES:
        if f"{trunk}.embed_tokens.weight" in weights:
            return trunk, head
    names = " or ".join(f"{trunk}.embed_tokens.weight" for trunk, _ in _PREFIXES)
    raise RunError(f"no embedding in the container: wanted {names}")
