"""Qwen3-Next: three gated delta layers, then one of gated attention; experts with a shared one.

The pieces are shared with Qwen3.5, which stores some tensors differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kandiga_run.config import Config
from kandiga_run.errors import RunError
from kandiga_run.native.blocks.attention import Attention, AttentionShape
from kandiga_run.native.blocks.gated_delta import (
    FusedProjection,
    GatedDeltaNet,
    GatedDeltaShape,
    InputProjection,
)
from kandiga_run.native.blocks.mlp import MLP
from kandiga_run.native.blocks.moe import SharedExpert
from kandiga_run.native.blocks.rope import Rope, rope_number, rope_scale
from kandiga_run.native.blocks.router import routing_mode
from kandiga_run.native.builder import Builder, has_experts
from kandiga_run.native.decoder import Decoder, FeedForward, Layer, Mixer
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

MakeProjection = Callable[[Weights, str, GatedDeltaShape, Scratch], InputProjection]


@dataclass(frozen=True)
class HybridParts:
    """Builds the layers of a family that mixes gated delta and gated attention."""

    builder: Builder
    config: Config
    rope: Rope
    make_projection: MakeProjection
    norm_topk_prob: bool

    def layers(self, trunk: str) -> list[Layer]:
        """Return all layers; their tensors are under `trunk`.layers."""
        check_layer_types(self.config)
        self.builder.weights.norm_offset = norm_offset(self.builder.weights)
        return [
            self._layer(layer, f"{trunk}.layers.{layer}")
            for layer in range(self.config.positive("num_hidden_layers"))
        ]

    def _layer(self, layer: int, name: str) -> Layer:
        return self.builder.layer(
            name,
            self._mixer(layer, name),
            self._feed_forward(layer, f"{name}.mlp"),
            self.config.number("rms_norm_eps", 1e-6),
        )

    def _mixer(self, layer: int, name: str) -> Mixer:
        weights, scratch = self.builder.weights, self.builder.scratch
        if has_attention(self.config, layer):
            shape = gated_attention_shape(self.config)
            return Attention(weights, f"{name}.self_attn", shape, self.rope, scratch)
        delta = gated_delta_shape(self.config)
        projection = self.make_projection(weights, f"{name}.linear_attn", delta, scratch)
        return GatedDeltaNet(weights, f"{name}.linear_attn", delta, projection, scratch)

    def _feed_forward(self, layer: int, name: str) -> FeedForward:
        config, builder = self.config, self.builder
        hidden_size = config.positive("hidden_size")
        if not has_experts(config, layer):
            intermediate_size = config.positive("intermediate_size")
            return MLP(builder.weights, name, hidden_size, intermediate_size, builder.scratch)
        shared_size = config.positive("shared_expert_intermediate_size")
        return builder.moe(
            name,
            layer,
            hidden_size=hidden_size,
            moe_intermediate_size=config.positive("moe_intermediate_size"),
            num_experts=config.positive("num_experts"),
            top_k=config.positive("num_experts_per_tok"),
            routing=routing_mode(config.flag("norm_topk_prob", self.norm_topk_prob)),
            shared_expert=SharedExpert(
                builder.weights, name, hidden_size, shared_size, builder.scratch
            ),
        )


def build(builder: Builder) -> Decoder:
    """Return the decoder; RunError names a config value or tensor that does not fit."""
    config = builder.model.text_config
    config.require("hidden_act", "silu")
    rotary_dim = int(config.positive("head_dim") * rope_number(config, "partial_rotary_factor"))
    rope = Rope(rotary_dim, rope_number(config, "rope_theta"), scale=rope_scale(config))
    builder.weights.ignore("mtp.")  # multi-token prediction head: packed, not computed
    parts = HybridParts(builder, config, rope, FusedProjection, norm_topk_prob=False)
    return builder.decoder(parts.layers("model"), config.number("rms_norm_eps"))


def norm_offset(weights: Weights) -> float:
    """Return what to add to norm weights.

    A checkpoint as Transformers writes it keeps them relative to one, and its convolution kernels
    as (channels, 1, kernel_size); mlx-lm adds the one when it rewrites the kernels.
    """
    kernels = [name for name in weights if name.endswith(".linear_attn.conv1d.weight")]
    return 1.0 if any(weights.shape(name)[-1] != 1 for name in kernels) else 0.0


def has_attention(config: Config, layer: int) -> bool:
    """Whether a layer is attention; the others are gated delta."""
    return (layer + 1) % config.positive("full_attention_interval", 4) == 0


def check_layer_types(config: Config) -> None:
    """Refuse a `layer_types` list that disagrees with full_attention_interval."""
    layer_types = config.get("layer_types")
    if layer_types is None:
        return
    expected = [
        "full_attention" if has_attention(config, layer) else "linear_attention"
        for layer in range(config.positive("num_hidden_layers"))
    ]
    if layer_types != expected:
        raise RunError(
            f"{config.where}: layer_types does not follow full_attention_interval "
            f"{config.positive('full_attention_interval', 4)}"
        )


def gated_attention_shape(config: Config) -> AttentionShape:
    """Return the sizes of the attention layers."""
    hidden_size = config.positive("hidden_size")
    num_heads = config.positive("num_attention_heads")
    return AttentionShape(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=config.positive("head_dim", hidden_size // num_heads),
        head_norm_eps=config.number("rms_norm_eps", 1e-6),
        gated=True,
        bias=config.flag("attention_bias", False),
    )


def gated_delta_shape(config: Config) -> GatedDeltaShape:
    """Return the sizes of the gated delta layers."""
    return GatedDeltaShape(
        hidden_size=config.positive("hidden_size"),
        num_key_heads=config.positive("linear_num_key_heads"),
        num_value_heads=config.positive("linear_num_value_heads"),
        key_head_dim=config.positive("linear_key_head_dim"),
        value_head_dim=config.positive("linear_value_head_dim"),
        conv_kernel_size=config.positive("linear_conv_kernel_dim"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
    )
