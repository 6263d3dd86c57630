"""Tensor names of each architecture: which GGUF tensors make which MLX parameters.

The names of both sides are facts: `gguf.tensor_mapping` has the GGUF ones by Hugging Face name (a
test compares), mlx-lm's `models/*.py` the others. What llama.cpp's converter does on the way is
undone here (see orders for the three reorderings):

    llama       rows of q and k interleaved, for its form of rotary embedding
    qwen3next   in_proj_qkvz split into attn_qkv and attn_gate
    qwen35moe   value heads of linear attention tiled over the key heads
    both qwen   A stored as -exp(A_log); conv kernels and gate vectors squeezed; 1 added to norms,
                which is MLX's form too and stays
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf import config as configs
from kandiga_pack.sources.gguf import orders
from kandiga_pack.sources.gguf.config import Hyperparameters
from kandiga_pack.sources.gguf.layout import Layout, Tensors
from kandiga_pack.sources.gguf.reader import GgufModel
from kandiga_pack.sources.gguf.recipes import MatrixRecipe, Recipe, check_type


@dataclass(frozen=True)
class Checkpoint:
    """What a GGUF becomes.

    Attributes:
        config: config.json without its quantization entry.
        recipes: in the order of the model.
        notes: what the user should know and no error says.
    """

    config: dict[str, Any]
    recipes: list[Recipe]
    notes: list[str]


def plan_checkpoint(model: GgufModel) -> Checkpoint:
    """Decide the config and a recipe for every parameter; no weight is read.

    Raises:
        PackError: an architecture, tensor or type that is not supported, a tensor that is missing.
    """
    hp = Hyperparameters(model)
    tensors = Tensors(model)
    for tensor in model.tensors.values():
        check_type(tensor)
    builder = _builder(hp)
    embedding = tensors.need("token_embd.weight")
    config = builder.config(hp, embedding.num_rows, tied="output.weight" not in tensors)
    recipes = builder.recipes(Layout(config.get("text_config", config), tensors, builder.prefix))
    notes = _leave_out_mtp(hp, tensors)
    tensors.check_all_used()
    return Checkpoint(config, recipes, notes)


@dataclass(frozen=True)
class _Family:
    config: Callable[..., dict[str, Any]]
    recipes: Callable[[Layout], list[Recipe]]
    prefix: str = ""


def _builder(hp: Hyperparameters) -> _Family:
    if hp.architecture == "llama" and hp.has("expert_count"):
        return _Family(configs.mixtral_config, _mixtral)
    if hp.architecture in _FAMILIES:
        return _FAMILIES[hp.architecture]
    raise PackError(
        f"{hp.path.name}: architecture {hp.architecture!r} is not supported as GGUF; supported are "
        f"{', '.join(_FAMILIES)} (with experts: mixtral). Use the model's MLX checkpoint"
    )


def _leave_out_mtp(hp: Hyperparameters, tensors: Tensors) -> list[str]:
    """Leave out multi-token-prediction blocks, as mlx-lm does when it loads, and say so."""
    notes = []
    for layer in range(hp.num_hidden_layers, hp.count("block_count")):
        names = tensors.names_of_block(layer)
        tensors.ignore(names)
        notes.append(
            f"{hp.path.name}: block {layer} ({len(names)} tensors) is for multi-token prediction, "
            "which mlx-lm does not load; it is left out"
        )
    return notes


def _llama(layout: Layout) -> list[Recipe]:
    width = layout.config["intermediate_size"]
    return layout.around_layers(
        lambda layer: [
            *layout.block_norms(layer, "ffn_norm"),
            *layout.attention(layer, interleaved=True),
            *layout.mlp(layer, "", "mlp", width),
        ]
    )


def _mixtral(layout: Layout) -> list[Recipe]:
    num_experts = layout.config["num_local_experts"]
    width = layout.config["intermediate_size"]
    return layout.around_layers(
        lambda layer: [
            *layout.block_norms(layer, "ffn_norm"),
            *layout.attention(layer, interleaved=True),
            *layout.experts(layer, "block_sparse_moe", num_experts, width),
        ]
    )


def _qwen3_moe(layout: Layout) -> list[Recipe]:
    return layout.around_layers(
        lambda layer: [
            *layout.block_norms(layer, "ffn_norm"),
            *layout.attention(layer),
            *layout.head_norms(layer),
            *_qwen_experts(layout, layer),
        ]
    )


def _qwen3_next(layout: Layout) -> list[Recipe]:
    return layout.around_layers(lambda layer: _hybrid_layer(layout, layer, _qwen3_next_delta))


def _qwen3_5_moe(layout: Layout) -> list[Recipe]:
    return layout.around_layers(lambda layer: _hybrid_layer(layout, layer, _qwen3_5_delta))


def _hybrid_layer(
    layout: Layout, layer: int, linear_attention: Callable[[Layout, int], list[Recipe]]
) -> list[Recipe]:
    """A layer of gated delta rule or, every `full_attention_interval`th, of gated attention."""
    if (layer + 1) % layout.config["full_attention_interval"]:
        attention = linear_attention(layout, layer)
    else:
        # q_proj gives each head its query and its output gate.
        query_rows = 2 * layout.num_heads * layout.head_dim
        attention = [*layout.attention(layer, query_rows=query_rows), *layout.head_norms(layer)]
    return [
        *layout.block_norms(layer, "post_attention_norm"),
        *attention,
        *_qwen_experts(layout, layer),
        *_shared_expert(layout, layer),
    ]


def _qwen_experts(layout: Layout, layer: int) -> list[Recipe]:
    num_experts = layout.config["num_experts"]
    return layout.experts(layer, "mlp", num_experts, layout.config["moe_intermediate_size"])


def _shared_expert(layout: Layout, layer: int) -> list[Recipe]:
    width = layout.config["shared_expert_intermediate_size"]
    return [
        *layout.mlp(layer, "_shexp", "mlp.shared_expert", width),
        layout.vector(
            f"blk.{layer}.ffn_gate_inp_shexp.weight",
            f"model.layers.{layer}.mlp.shared_expert_gate.weight",
            (1, layout.hidden_size),
        ),
    ]


@dataclass(frozen=True)
class _DeltaSizes:
    """Sizes of the gated delta rule: heads and widths."""

    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    kernel: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _DeltaSizes:
        return cls(
            config["linear_num_key_heads"],
            config["linear_num_value_heads"],
            config["linear_key_head_dim"],
            config["linear_value_head_dim"],
            config["linear_conv_kernel_dim"],
        )

    @property
    def key_width(self) -> int:
        return self.key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        return self.value_heads * self.value_head_dim

    @property
    def conv_width(self) -> int:
        return 2 * self.key_width + self.value_width


def _log_decay(a: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A_log of A = -exp(A_log).

    exp and log round: the published A_log comes back within about one float32 rounding of A, a
    relative error of 6e-8 in the decay rate. Everything else is exact.
    """
    if np.any(a >= 0):
        raise PackError(
            "ssm_a must be negative everywhere (it is -exp(A_log)); the file is damaged"
        )
    return np.log(-a.astype(np.float64)).astype(np.float32)


def _qwen3_next_delta(layout: Layout, layer: int) -> list[Recipe]:
    sizes = _DeltaSizes.of(layout.config)
    gguf, mlx = f"blk.{layer}.", f"model.layers.{layer}.linear_attn."
    qkvz_shape = (sizes.conv_width + sizes.value_width, layout.hidden_size)
    if f"{gguf}ssm_in.weight" in layout.tensors:
        qkvz = layout.matrix(f"{gguf}ssm_in.weight", f"{mlx}in_proj_qkvz", qkvz_shape)
    else:
        order = orders.interleaved_qkvz(
            sizes.key_heads, sizes.value_heads, sizes.key_head_dim, sizes.value_head_dim
        )
        names = (f"{gguf}attn_qkv.weight", f"{gguf}attn_gate.weight")
        qkvz = layout.matrix(names, f"{mlx}in_proj_qkvz", qkvz_shape, rows=order)
    ba_shape = (2 * sizes.value_heads, layout.hidden_size)
    return [
        qkvz,
        layout.matrix(f"{gguf}ssm_ba.weight", f"{mlx}in_proj_ba", ba_shape),
        *_delta_vectors(layout, layer, sizes),
        layout.matrix(
            f"{gguf}ssm_out.weight", f"{mlx}out_proj", (layout.hidden_size, sizes.value_width)
        ),
    ]


def _qwen3_5_delta(layout: Layout, layer: int) -> list[Recipe]:
    sizes = _DeltaSizes.of(layout.config)
    gguf, mlx = f"blk.{layer}.", f"model.layers.{layer}.linear_attn."
    heads = orders.grouped_value_heads(sizes.key_heads, sizes.value_heads, 1)
    values = orders.grouped_value_heads(sizes.key_heads, sizes.value_heads, sizes.value_head_dim)
    channels = _conv_channels(sizes, values)
    hidden_size = layout.hidden_size

    def matrix(name: str, module: str, rows: int, order: orders.Order) -> MatrixRecipe:
        return layout.matrix(
            f"{gguf}{name}.weight", f"{mlx}{module}", (rows, hidden_size), rows=order
        )

    return [
        matrix("attn_qkv", "in_proj_qkv", sizes.conv_width, channels),
        matrix("attn_gate", "in_proj_z", sizes.value_width, values),
        matrix("ssm_beta", "in_proj_b", sizes.value_heads, heads),
        matrix("ssm_alpha", "in_proj_a", sizes.value_heads, heads),
        *_delta_vectors(layout, layer, sizes, heads=heads, channels=channels),
        layout.matrix(
            f"{gguf}ssm_out.weight",
            f"{mlx}out_proj",
            (hidden_size, sizes.value_width),
            columns=values,
        ),
    ]


def _conv_channels(sizes: _DeltaSizes, values: orders.Order) -> orders.Order:
    """Order over q, k and v together, of which only v is tiled."""
    keys = np.arange(2 * sizes.key_width)
    return np.concatenate([keys, 2 * sizes.key_width + values])


def _delta_vectors(
    layout: Layout,
    layer: int,
    sizes: _DeltaSizes,
    *,
    heads: orders.Order | None = None,
    channels: orders.Order | None = None,
) -> list[Recipe]:
    gguf, mlx = f"blk.{layer}.ssm_", f"model.layers.{layer}.linear_attn."
    conv_shape = (sizes.conv_width, sizes.kernel, 1)
    per_head = (sizes.value_heads,)
    return [
        layout.vector(f"{gguf}conv1d.weight", f"{mlx}conv1d.weight", conv_shape, order=channels),
        layout.vector(f"{gguf}dt.bias", f"{mlx}dt_bias", per_head, order=heads),
        layout.vector(f"{gguf}a", f"{mlx}A_log", per_head, order=heads, transform=_log_decay),
        layout.norm(f"{gguf}norm", f"{mlx}norm", sizes.value_head_dim),
    ]


_FAMILIES = {
    "llama": _Family(configs.llama_config, _llama),
    "qwen3moe": _Family(configs.qwen3_moe_config, _qwen3_moe),
    "qwen3next": _Family(configs.qwen3_next_config, _qwen3_next),
    "qwen35moe": _Family(configs.qwen3_5_moe_config, _qwen3_5_moe, prefix="language_model."),
}
