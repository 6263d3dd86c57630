"""Qwen3-MoE: attention with normalized queries and keys, some layers experts, some dense."""

from __future__ import annotations

from kandiga_run.native.blocks.attention import Attention, AttentionShape
from kandiga_run.native.blocks.mlp import MLP
from kandiga_run.native.blocks.rope import Rope, rope_number, rope_scale
from kandiga_run.native.blocks.router import routing_mode
from kandiga_run.native.builder import Builder, has_experts
from kandiga_run.native.decoder import Decoder, FeedForward


def build(builder: Builder) -> Decoder:
    """Return the decoder; RunError names a config value or tensor that does not fit."""
    config = builder.model.text_config
    config.require("hidden_act", "silu")
    config.require("use_sliding_window", False)
    hidden_size = config.positive("hidden_size")
    eps = config.number("rms_norm_eps")
    num_heads = config.positive("num_attention_heads")
    shape = AttentionShape(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=config.positive("head_dim", hidden_size // num_heads),
        head_norm_eps=eps,
        bias=config.flag("attention_bias", False),
    )
    rope = Rope(
        shape.head_dim,
        rope_number(config, "rope_theta"),
        scale=rope_scale(config, linear=False),
    )

    def feed_forward(layer: int, name: str) -> FeedForward:
        if not has_experts(config, layer):
            intermediate_size = config.positive("intermediate_size")
            return MLP(builder.weights, name, hidden_size, intermediate_size, builder.scratch)
        return builder.moe(
            name,
            layer,
            hidden_size=hidden_size,
            moe_intermediate_size=config.positive("moe_intermediate_size"),
            num_experts=config.positive("num_experts"),
            top_k=config.positive("num_experts_per_tok"),
            routing=routing_mode(config.flag("norm_topk_prob")),
        )

    layers = []
    for layer in range(config.positive("num_hidden_layers")):
        name = f"model.layers.{layer}"
        attention = Attention(builder.weights, f"{name}.self_attn", shape, rope, builder.scratch)
        layers.append(builder.layer(name, attention, feed_forward(layer, f"{name}.mlp"), eps))
    return builder.decoder(layers, eps)
