"""A large set of random weights in the shape of a published model, for benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from containers import make_meta
from formats import DenseSpec, Layout, Part, SetWriter, plan_shards

HIDDEN_SIZE, MOE_INTERMEDIATE_SIZE = 2048, 512  # Qwen3.5-35B-A3B
NUM_EXPERTS = 32


def expert_layout(hidden_size: int, intermediate_size: int) -> Layout:
    """A SwiGLU expert, affine 4-bit at group 64 with bf16 scales."""
    parts = []
    for projection, rows, cols in (
        ("gate", intermediate_size, hidden_size),
        ("up", intermediate_size, hidden_size),
        ("down", hidden_size, intermediate_size),
    ):
        parts += [
            Part(projection, "weight", "u32", (rows, cols // 8), "affine", 4, 64),
            Part(projection, "scales", "bf16", (rows, cols // 64), "affine", 4, 64),
            Part(projection, "biases", "bf16", (rows, cols // 64), "affine", 4, 64),
        ]
    return Layout.build(parts)


def write_random_set(dest: Path, *, total_bytes: int, dense_bytes: int) -> None:
    """Write about `total_bytes` of experts, and `dense_bytes` of dense weights, at `dest`."""
    layout = expert_layout(HIDDEN_SIZE, MOE_INTERMEDIATE_SIZE)
    num_layers = max(1, total_bytes // (NUM_EXPERTS * layout.block_bytes))
    layers = [(layer, NUM_EXPERTS, layout) for layer in range(num_layers)]
    random = np.random.default_rng(0).integers(0, 256, layout.block_bytes, dtype=np.uint8)
    spec = DenseSpec("dense", "u8", (dense_bytes,))
    config = dest.with_name("config.json")
    config.write_text("{}")
    plan = plan_shards(dense_bytes, layers)
    with SetWriter(dest, plan, make_meta(layers), [spec], files=[config]) as writer:
        for start in range(0, dense_bytes, random.size):
            writer.write_dense_chunk("dense", random[: min(random.size, dense_bytes - start)])
        for layer in range(num_layers):
            for expert in range(NUM_EXPERTS):
                random[:2] = layer, expert  # no two blocks alike
                parts = {
                    part.key: random[part.offset_bytes : part.offset_bytes + part.length_bytes]
                    for part in layout.parts
                }
                writer.write_expert(layer, expert, parts)
        writer.commit()
