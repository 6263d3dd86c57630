"""The parts that decoder families share, as recipes: embedding, attention, norms, MLPs, experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf import orders
from kandiga_pack.sources.gguf.reader import GgufModel, GgufTensor
from kandiga_pack.sources.gguf.recipes import MatrixRecipe, Recipe, VectorRecipe

PROJECTIONS = ("gate", "up", "down")


class Tensors:
    """The tensors of a GGUF; remembers which were asked for."""

    def __init__(self, model: GgufModel) -> None:
        self._file_name = model.paths[0].name
        self._tensors = model.tensors
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def need(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise PackError(
                f"{self._file_name}: tensor {name} is missing. The file is incomplete, or from a "
                "llama.cpp so old that its layout differs: convert the model again"
            )
        self._used.add(name)
        return self._tensors[name]

    def ignore(self, names: Iterable[str]) -> None:
        self._used.update(names)

    def names_of_block(self, layer: int) -> list[str]:
        return [name for name in self._tensors if name.startswith(f"blk.{layer}.")]

    def check_all_used(self) -> None:
        """Refuse a tensor nobody asked for: the model would be computed without it."""
        unused = [name for name in self._tensors if name not in self._used]
        if unused:
            raise PackError(
                f"{self._file_name}: {len(unused)} tensors that this architecture does not have, "
                f"first {unused[0]}. Use the model's MLX checkpoint"
            )


class Layout:
    """Makes recipes from GGUF names, MLX names and the sizes in the config."""

    def __init__(self, config: Mapping[str, Any], tensors: Tensors, prefix: str) -> None:
        self.config = config
        self.tensors = tensors
        self.prefix = prefix
        self.hidden_size: int = config["hidden_size"]
        self.num_layers: int = config["num_hidden_layers"]
        self.num_heads: int = config["num_attention_heads"]
        self.num_kv_heads: int = config["num_key_value_heads"]
        self.head_dim: int = config.get("head_dim", self.hidden_size // self.num_heads)

    def matrix(
        self, gguf_names: str | tuple[str, ...], module: str, shape: tuple[int, ...], **orders_: Any
    ) -> MatrixRecipe:
        names = (gguf_names,) if isinstance(gguf_names, str) else gguf_names
        inputs = tuple(self.tensors.need(name) for name in names)
        return MatrixRecipe(self.prefix + module, inputs, shape, **orders_)

    def vector(
        self, gguf_name: str, name: str, shape: tuple[int, ...], **changes: Any
    ) -> VectorRecipe:
        return VectorRecipe(self.prefix + name, self.tensors.need(gguf_name), shape, **changes)

    def norm(self, gguf_name: str, module: str, width: int) -> VectorRecipe:
        return self.vector(f"{gguf_name}.weight", f"{module}.weight", (width,))

    def around_layers(self, layers: Callable[[int], list[Recipe]]) -> list[Recipe]:
        """Embedding, every layer, final norm, output head where it is not the embedding."""
        table = (self.config["vocab_size"], self.hidden_size)
        recipes: list[Recipe] = [self.matrix("token_embd.weight", "model.embed_tokens", table)]
        for layer in range(self.num_layers):
            recipes += layers(layer)
        recipes.append(self.norm("output_norm", "model.norm", self.hidden_size))
        if not self.config["tie_word_embeddings"]:
            recipes.append(self.matrix("output.weight", "lm_head", table))
        return recipes

    def attention(
        self, layer: int, *, query_rows: int | None = None, interleaved: bool = False
    ) -> list[Recipe]:
        """q, k, v, o of ordinary attention; `interleaved` where q and k follow llama.cpp's rope."""
        gguf, mlx = f"blk.{layer}.attn_", f"model.layers.{layer}.self_attn."
        heads_width = self.num_heads * self.head_dim
        kv_width = self.num_kv_heads * self.head_dim
        q_order = orders.rope_halves(self.num_heads, self.head_dim) if interleaved else None
        k_order = orders.rope_halves(self.num_kv_heads, self.head_dim) if interleaved else None
        q_shape = (query_rows or heads_width, self.hidden_size)
        kv_shape = (kv_width, self.hidden_size)
        o_shape = (self.hidden_size, heads_width)
        return [
            self.matrix(f"{gguf}q.weight", f"{mlx}q_proj", q_shape, rows=q_order),
            self.matrix(f"{gguf}k.weight", f"{mlx}k_proj", kv_shape, rows=k_order),
            self.matrix(f"{gguf}v.weight", f"{mlx}v_proj", kv_shape),
            self.matrix(f"{gguf}output.weight", f"{mlx}o_proj", o_shape),
        ]

    def head_norms(self, layer: int) -> list[Recipe]:
        gguf, mlx = f"blk.{layer}.attn_", f"model.layers.{layer}.self_attn."
        return [
            self.norm(f"{gguf}q_norm", f"{mlx}q_norm", self.head_dim),
            self.norm(f"{gguf}k_norm", f"{mlx}k_norm", self.head_dim),
        ]

    def block_norms(self, layer: int, second: str) -> list[Recipe]:
        gguf, mlx = f"blk.{layer}.", f"model.layers.{layer}."
        return [
            self.norm(f"{gguf}attn_norm", f"{mlx}input_layernorm", self.hidden_size),
            self.norm(f"{gguf}{second}", f"{mlx}post_attention_layernorm", self.hidden_size),
        ]

    def mlp(self, layer: int, gguf_suffix: str, module: str, width: int) -> list[Recipe]:
        """gate, up, down of one dense MLP."""
        shapes = _mlp_shapes(self.hidden_size, width)
        return [
            self.matrix(
                f"blk.{layer}.ffn_{projection}{gguf_suffix}.weight",
                f"model.layers.{layer}.{module}.{projection}_proj",
                shapes[projection],
            )
            for projection in PROJECTIONS
        ]

    def experts(self, layer: int, module: str, num_experts: int, width: int) -> list[Recipe]:
        """Router and the stacks gate, up, down; gate and up may be stored as one tensor."""
        gguf, mlx = f"blk.{layer}.ffn_", f"model.layers.{layer}.{module}"
        recipes: list[Recipe] = [
            self.matrix(f"{gguf}gate_inp.weight", f"{mlx}.gate", (num_experts, self.hidden_size))
        ]
        fused = f"{gguf}gate_up_exps.weight"
        halves = {"gate": np.arange(width), "up": np.arange(width, 2 * width)}
        for projection, shape in _mlp_shapes(self.hidden_size, width).items():
            stack = f"{mlx}.switch_mlp.{projection}_proj", (num_experts, *shape)
            if projection in halves and fused in self.tensors:
                half: dict[str, Any] = {"rows": halves[projection], "num_input_rows": 2 * width}
                recipes.append(self.matrix(fused, *stack, **half))
            else:
                recipes.append(self.matrix(f"{gguf}{projection}_exps.weight", *stack))
        return recipes


def _mlp_shapes(hidden_size: int, width: int) -> dict[str, tuple[int, int]]:
    return {"gate": (width, hidden_size), "up": (width, hidden_size), "down": (hidden_size, width)}
