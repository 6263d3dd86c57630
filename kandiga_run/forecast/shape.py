"""A model as far as sizes go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kandiga_run.config import TOP_K_KEYS, Config
from kandiga_run.kv.choices import KVChoice

_F32_BYTES = 4
_F16_BYTES = 2


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of a layer; bytes are those of one expert.

    block_bytes: what it takes on the disk and in a slot. payload_bytes: what a token reads of it.
    """

    num_experts: int
    block_bytes: int
    payload_bytes: int


@dataclass(frozen=True)
class SequenceShape:
    """What a model keeps of a sequence."""

    num_kv_layers: int
    num_kv_heads: int
    head_dim: int
    #: of all layers without keys and values, whatever the length
    recurrent_bytes: int = 0
    #: false where keys and values have another form, which --kv does not compress
    is_plain: bool = True

    def num_bytes(self, num_tokens: int, kv: KVChoice = "auto") -> int:
        """Return the most that a sequence holds on its way to `num_tokens` tokens."""
        if not self.is_plain:
            each = 2 * self.num_kv_heads * self.head_dim * _F16_BYTES
            return self.recurrent_bytes + self.num_kv_layers * each * num_tokens
        import numpy as np

        from kandiga_run.kv.formats import KVPlan

        plan = KVPlan(kv, np.dtype(np.float16))
        layers = (plan.layer(index, self.num_kv_layers) for index in range(self.num_kv_layers))
        return self.recurrent_bytes + sum(
            layer.bytes_for(self.num_kv_heads, self.head_dim, num_tokens) for layer in layers
        )


@dataclass(frozen=True)
class DenseBytes:
    """The weights that are no routed experts.

    every_token: read in full for each token. by_row: of which a token reads one row, as embeddings.
    unused: packed and never read, as vision towers.
    """

    every_token: int
    by_row: int = 0
    unused: int = 0

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.every_token + self.by_row + self.unused


@dataclass(frozen=True)
class Download:
    """Weight files that are not on this machine.

    largest_file_bytes: while packing by streaming, so much of the checkpoint is there beside the
    container. is_streamed: false when the whole checkpoint must be there before packing begins.
    """

    total_bytes: int
    largest_file_bytes: int
    is_streamed: bool = True


@dataclass(frozen=True)
class ModelShape:
    """A model, wherever it is.

    kind: "container" and "checkpoint" on this machine; "published" and "hub checkpoint" on the
    Hub; "preset" for a shape known by name.
    """

    name: str
    kind: str
    architecture: str
    top_k: int
    layers: tuple[ExpertLayer, ...]
    dense: DenseBytes
    sequence: SequenceShape
    hidden_size: int
    vocab_size: int
    context_length: int | None = None
    #: None when everything is here
    download: Download | None = None
    #: weights in no form that `kandiga-pack convert` copies bit for bit; shapes are as published
    notes: tuple[str, ...] = ()

    @property
    def num_experts(self) -> int:
        """Return the number of experts of the layer that has most."""
        return max((layer.num_experts for layer in self.layers), default=0)

    @property
    def expert_bytes(self) -> int:
        """Return the size of all routed experts on disk."""
        return sum(layer.num_experts * layer.block_bytes for layer in self.layers)

    @property
    def packed_bytes(self) -> int:
        """Return the size of the container; its index and the tokenizer are a thousandth of it."""
        return self.expert_bytes + self.dense.total

    @property
    def token_expert_bytes(self) -> int:
        """Return what the experts of one token take."""
        return sum(min(self.top_k, each.num_experts) * each.payload_bytes for each in self.layers)

    @property
    def block_bytes(self) -> int:
        """Return the largest expert's size on disk."""
        return max((layer.block_bytes for layer in self.layers), default=0)

    @property
    def sizes(self) -> dict[int, int]:
        """Return {block_bytes: experts}."""
        counts: dict[int, int] = {}
        for layer in self.layers:
            counts[layer.block_bytes] = counts.get(layer.block_bytes, 0) + layer.num_experts
        return counts


def sequence_shape(config: Config, architecture: str) -> SequenceShape:
    """Return what a sequence keeps, from the language model's part of config.json.

    RunError when the config does not say how many layers or heads there are.
    """
    num_layers = config.positive("num_hidden_layers")
    if "kv_lora_rank" in config:  # latent attention keeps one vector and one rotary key a layer
        width = config.positive("kv_lora_rank") + config.positive("qk_rope_head_dim", 1)
        # Two of half the width, as keys and values of one head would be.
        return SequenceShape(num_layers, 1, -(-width // 2), is_plain=False)
    num_heads = config.positive("num_attention_heads")
    head_dim = config.positive("head_dim", config.positive("hidden_size") // num_heads)
    num_kv_heads = config.positive("num_key_value_heads", num_heads)
    if "linear_num_value_heads" not in config:
        return SequenceShape(num_layers, num_kv_heads, head_dim)
    interval = config.positive("full_attention_interval", 4)
    num_kv_layers = num_layers // interval
    recurrent = (num_layers - num_kv_layers) * _gated_delta_bytes(config)
    return SequenceShape(num_kv_layers, num_kv_heads, head_dim, recurrent)


def _gated_delta_bytes(config: Config) -> int:
    """Return the state of a gated delta layer: a few inputs of its convolution, and a matrix for
    each value head."""
    key_dim = config.positive("linear_key_head_dim")
    value_dim = config.positive("linear_value_head_dim")
    num_value_heads = config.positive("linear_num_value_heads")
    conv_dim = 2 * config.positive("linear_num_key_heads") * key_dim + num_value_heads * value_dim
    conv = (config.positive("linear_conv_kernel_dim", 4) - 1) * conv_dim
    return _F32_BYTES * (conv + num_value_heads * value_dim * key_dim)


def language_config(config: dict[str, Any]) -> Config:
    """Return the part of config.json that describes the language model."""
    whole = Config(config)
    for key in ("text_config", "llm_config", "language_config"):
        if key in whole and "num_hidden_layers" in whole.section(key):
            return whole.section(key)
    return whole


def top_k_of(config: Config) -> int:
    """Return the experts a token uses. RunError when the config does not say."""
    for key in TOP_K_KEYS:
        if key in config:
            return config.positive(key)
    raise config.error(TOP_K_KEYS[0], "the experts a token uses: is it a mixture of experts?")
