"""What an architecture needs to build its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kandiga_run.config import Config
from kandiga_run.container import Model
from kandiga_run.engine.checks import resolve_top_k
from kandiga_run.errors import RunError
from kandiga_run.experts.store import ExpertStore
from kandiga_run.native.blocks.embedding import embedding_and_head
from kandiga_run.native.blocks.moe import MoE, SharedExpert
from kandiga_run.native.blocks.norm import RMSNorm
from kandiga_run.native.blocks.router import Router, RoutingMode
from kandiga_run.native.decoder import Decoder, FeedForward, Layer, Mixer
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights


def has_experts(config: Config, layer: int) -> bool:
    """Whether a layer of the Qwen families has experts; the others are dense MLPs."""
    if layer in config.numbers("mlp_only_layers"):
        return False
    return (layer + 1) % config.positive("decoder_sparse_step", 1) == 0


@dataclass(frozen=True)
class Builder:
    """The model, its tensors, and what is shared by all layers."""

    model: Model
    weights: Weights
    store: ExpertStore
    scratch: Scratch
    num_experts_per_token: int | Literal["fast"] | None

    def norm(self, name: str, hidden_size: int, eps: float) -> RMSNorm:
        """Return the RMSNorm whose weight is `name`.weight."""
        return RMSNorm(self.weights.norm(f"{name}.weight", hidden_size), eps)

    def moe(
        self,
        name: str,
        layer: int,
        *,
        hidden_size: int,
        moe_intermediate_size: int,
        num_experts: int,
        top_k: int,
        routing: RoutingMode,
        shared_expert: SharedExpert | None = None,
    ) -> MoE:
        """Return the mixture-of-experts block of a layer, checked against the container."""
        container = self.model.container
        if layer not in container.layers:
            raise RunError(f"config.json: layer {layer} has routed experts, the container has none")
        if container.num_experts(layer) != num_experts:
            raise RunError(
                f"config.json: {num_experts} experts, layer {layer} of the container has "
                f"{container.num_experts(layer)}"
            )
        layout = self.model.expert_layout(layer, self.weights.arithmetic)
        seen = (layout.hidden_size, layout.moe_intermediate_size)
        if seen != (hidden_size, moe_intermediate_size):
            raise RunError(
                f"layer {layer}: experts of hidden and intermediate size {seen}, the config says "
                f"{(hidden_size, moe_intermediate_size)}"
            )
        used = resolve_top_k(self.num_experts_per_token, top_k, num_experts)
        router = Router(
            self.weights,
            f"{name}.gate",
            hidden_size=hidden_size,
            num_experts=num_experts,
            top_k=used,
            mode=routing,
            scratch=self.scratch,
        )
        return MoE(router, self.store, layer, layout, used, self.scratch, shared_expert)

    def layer(self, name: str, mixer: Mixer, feed_forward: FeedForward, eps: float) -> Layer:
        """Return a layer whose two norms have the names that all native families give them."""
        hidden_size = self.model.text_config.positive("hidden_size")
        return Layer(
            self.norm(f"{name}.input_layernorm", hidden_size, eps),
            mixer,
            self.norm(f"{name}.post_attention_layernorm", hidden_size, eps),
            feed_forward,
        )

    def decoder(
        self, layers: Sequence[Layer], eps: float, *, trunk: str = "model", head: str = "lm_head"
    ) -> Decoder:
        """Put embedding, layers, norm and head together; every tensor must have found a place."""
        config = self.model.text_config
        hidden_size = config.positive("hidden_size")
        embedding, lm_head = embedding_and_head(
            self.weights,
            f"{trunk}.embed_tokens",
            head,
            config.positive("vocab_size"),
            hidden_size,
            config.flag("tie_word_embeddings", False),
        )
        norm = self.norm(f"{trunk}.norm", hidden_size, eps)
        self.weights.check_all_used()
        return Decoder(embedding, layers, norm, lm_head, self.scratch)
