"""A dense llama read straight from its GGUF and computed in numpy: slow, obvious, ours alone.

It shares no code with kandiga: the gguf package reads and dequantizes, and the rotary embedding
works on llama.cpp's interleaved rows as they are stored.
"""

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFReader


@dataclass
class DenseLlama:
    """Weights in float32 by GGUF name, (rows, columns); a KV cache that `forward` extends.

    keys, values: a list for every layer of (num_kv_heads, head_dim) arrays, one a position.
    """

    weights: dict[str, np.ndarray]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_base: float
    epsilon: float
    keys: list[list[np.ndarray]] = field(default_factory=list)
    values: list[list[np.ndarray]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "DenseLlama":
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

    def forward(self, token: int) -> np.ndarray:
        """Append `token` and return the logits (vocab,) float32 after it."""
        if not self.keys:
            self.keys = [[] for _ in range(self.num_layers)]
            self.values = [[] for _ in range(self.num_layers)]
        x = self.weights["token_embd.weight"][token]
        for layer in range(self.num_layers):
            block = f"blk.{layer}."
            x = x + self._attention(layer, self._norm(x, f"{block}attn_norm"))
            x = x + self._mlp(block, self._norm(x, f"{block}ffn_norm"))
        head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
        return self.weights[head] @ self._norm(x, "output_norm")

    def greedy(self, prompt: list[int], num_tokens: int, stop: int) -> tuple[list[int], np.ndarray]:
        """Return the tokens that follow `prompt`, `stop` included, and the logits of each."""
        for token in prompt[:-1]:
            self.forward(token)
        tokens, rows = [prompt[-1]], []
        while len(rows) < num_tokens and (not rows or tokens[-1] != stop):
            rows.append(self.forward(tokens[-1]))
            tokens.append(int(rows[-1].argmax()))
        return tokens[1:], np.stack(rows)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x) + self.epsilon) * self.weights[f"{name}.weight"]

    def _mlp(self, block: str, x: np.ndarray) -> np.ndarray:
        gate = self.weights[f"{block}ffn_gate.weight"] @ x
        up = self.weights[f"{block}ffn_up.weight"] @ x
        return self.weights[f"{block}ffn_down.weight"] @ (gate / (1 + np.exp(-gate)) * up)

    def _attention(self, layer: int, x: np.ndarray) -> np.ndarray:
        q, k, v = (self.weights[f"blk.{layer}.attn_{n}.weight"] @ x for n in "qkv")
        position = len(self.keys[layer])
        q = self._rotate(q.reshape(self.num_heads, -1), position)
        self.keys[layer].append(self._rotate(k.reshape(self.num_kv_heads, -1), position))
        self.values[layer].append(v.reshape(self.num_kv_heads, -1))
        keys, values = np.stack(self.keys[layer]), np.stack(self.values[layer])
        out = np.empty_like(q)
        for head in range(self.num_heads):
            kv_head = head * self.num_kv_heads // self.num_heads
            scores = keys[:, kv_head] @ q[head] / np.sqrt(q.shape[1])
            weights = np.exp(scores - scores.max())
            out[head] = weights / weights.sum() @ values[:, kv_head]
        return self.weights[f"blk.{layer}.attn_output.weight"] @ out.reshape(-1)

    def _rotate(self, heads: np.ndarray, position: int) -> np.ndarray:
        """Rotate the pairs (2j, 2j+1) of every head by position / base^(2j / head_dim)."""
        width = heads.shape[1]
        angle = position * self.rope_base ** (-np.arange(0, width, 2) / width)
        even, odd = heads[:, 0::2], heads[:, 1::2]
        out = np.empty_like(heads)
        out[:, 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[:, 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        return out
