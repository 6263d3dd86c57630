"""Row and column orders that llama.cpp's converter changes, and the way back.

Each function returns `order`, an int64 index array with `hf = gguf[order]`: position in the Hugging
Face (and MLX) tensor -> position in the GGUF tensor. Whole rows move, or whole 32-column blocks, so
quantized codes are carried over untouched.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]


def rope_halves(num_heads: int, head_dim: int) -> Order:
    """Undo the interleaving of `llama` q and k rows.

    GGUF pairs rows (2j, 2j+1) of a head for its rotary embedding, MLX pairs (j, j + head_dim/2).
    """
    pairs = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def grouped_value_heads(num_key_heads: int, num_value_heads: int, width: int) -> Order:
    """Undo the tiling of value heads in `qwen35moe` linear attention; a head has `width` rows.

    GGUF has value head v of key head k at v * num_key_heads + k, MLX keeps the value heads of one
    key head together.
    """
    per_key_head = num_value_heads // num_key_heads
    heads = np.arange(num_value_heads).reshape(per_key_head, num_key_heads).T.reshape(-1, 1)
    return (heads * width + np.arange(width)).reshape(-1)


def interleaved_qkvz(
    num_key_heads: int, num_value_heads: int, key_head_dim: int, value_head_dim: int
) -> Order:
    """Rows of `in_proj_qkvz` (q, k, v, z of key head 0, then of key head 1, ...) in the rows of
    attn_qkv (all q, all k, all v) followed by those of attn_gate (all z), for `qwen3next`."""
    value_width = num_value_heads // num_key_heads * value_head_dim
    sections = []
    start = 0
    for width in (key_head_dim, key_head_dim, value_width, value_width):
        stop = start + num_key_heads * width
        sections.append(np.arange(start, stop).reshape(num_key_heads, width))
        start = stop
    return np.concatenate(sections, axis=1).reshape(-1)
