"""A dense llama read straight from its GGUF and computed in numpy: slow, obvious, ours alone.

It shares no code with kandiga: the gguf package reads and dequantizes, and the rotary embedding
works on llama.cpp's interleaved rows as they are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import gguf
import numpy as np
from gguf import GGUFReader


@dataclass
class DenseLlama:
    """Weights in float32 by GGUF name, (rows, columns)."""

    weights: dict[str, np.ndarray]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_base: float
    epsilon: float

    @classmethod
    def load(cls, path: Path) -> Self:
        reader = GGUFReader(path)

        def key(name: str) -> float:
            return reader.fields[f"llama.{name}"].contents()

        weights = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for tensor in reader.tensors
        }
        return cls(
            weights,
            int(key("block_count")),
            int(key("attention.head_count")),
            int(key("attention.head_count_kv")),
            key("rope.freq_base"),
            key("attention.layer_norm_rms_epsilon"),
        )

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return (len(tokens), vocab) float32: row t follows tokens[: t + 1]."""
        x = self.weights["token_embd.weight"][list(tokens)]
        for layer in range(self.num_layers):
            block = f"blk.{layer}."
            x = x + self._attention(block, self._norm(x, f"{block}attn_norm"))
            x = x + self._mlp(block, self._norm(x, f"{block}ffn_norm"))
        head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
        return self._norm(x, "output_norm") @ self.weights[head].T

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.epsilon) * self.weights[f"{name}.weight"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T

    def _mlp(self, block: str, x: np.ndarray) -> np.ndarray:
        gate = self._linear(x, f"{block}ffn_gate")
        activated = gate / (1 + np.exp(-gate)) * self._linear(x, f"{block}ffn_up")
        return self._linear(activated, f"{block}ffn_down")

    def _attention(self, block: str, x: np.ndarray) -> np.ndarray:
        num_tokens = len(x)
        q = self._rotate(self._linear(x, f"{block}attn_q").reshape(num_tokens, self.num_heads, -1))
        k = self._rotate(
            self._linear(x, f"{block}attn_k").reshape(num_tokens, self.num_kv_heads, -1)
        )
        v = self._linear(x, f"{block}attn_v").reshape(num_tokens, self.num_kv_heads, -1)
        later = np.triu(np.ones((num_tokens, num_tokens), bool), 1)
        out = np.empty_like(q)
        for head in range(self.num_heads):
            kv_head = head * self.num_kv_heads // self.num_heads
            scores = q[:, head] @ k[:, kv_head].T / np.sqrt(q.shape[-1])
            scores[later] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, head] = weights @ v[:, kv_head]
        return self._linear(out.reshape(num_tokens, -1), f"{block}attn_output")

    def _rotate(self, heads: np.ndarray) -> np.ndarray:
        """Rotate (tokens, heads, head_dim): pair (2j, 2j+1) by position / base^(2j / head_dim)."""
        num_tokens, _, width = heads.shape
        frequency = self.rope_base ** (-np.arange(0, width, 2) / width)
        angle = np.arange(num_tokens)[:, None, None] * frequency
        even, odd = heads[..., 0::2], heads[..., 1::2]
        out = np.empty_like(heads)
        out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        return out
