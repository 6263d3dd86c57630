"""Mixtral: grouped-query attention, every layer a mixture of experts without a shared one.

The router's softmax runs over the chosen experts only.
"""

from __future__ import annotations

from kandiga_run.native.blocks.attention import Attention, AttentionShape
from kandiga_run.native.blocks.rope import Rope, rope_number, rope_scale
from kandiga_run.native.builder import Builder
from kandiga_run.native.decoder import Decoder


def build(builder: Builder) -> Decoder:
    """Return the decoder; RunError names a config value or tensor that does not fit."""
    config = builder.model.text_config
    config.require("hidden_act", "silu")
    config.require("sliding_window")
    hidden_size = config.positive("hidden_size")
    num_heads = config.positive("num_attention_heads")
    head_dim = config.positive("head_dim", hidden_size // num_heads)
    eps = config.number("rms_norm_eps", 1e-5)
    shape = AttentionShape(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=config.positive("num_key_value_heads", num_heads),
        head_dim=head_dim,
    )
    rope = Rope(
        head_dim,
        rope_number(config, "rope_theta", 1e6),
        traditional=config.flag("rope_traditional", False),
        scale=rope_scale(config, linear=False),
    )
    layers = []
    for layer in range(config.positive("num_hidden_layers")):
        name = f"model.layers.{layer}"
        moe = builder.moe(
            f"{name}.block_sparse_moe",
            layer,
            hidden_size=hidden_size,
            moe_intermediate_size=config.positive("intermediate_size"),
            num_experts=config.positive("num_local_experts"),
            top_k=config.positive("num_experts_per_tok"),
            routing="topk_then_softmax",
        )
        attention = Attention(builder.weights, f"{name}.self_attn", shape, rope, builder.scratch)
        layers.append(builder.layer(name, attention, moe, eps))
    return builder.decoder(layers, eps)
