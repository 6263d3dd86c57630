"""A large set of random weights in the shape of a published model, for benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from containers import affine_layout, make_meta
from formats import DenseSpec, SetWriter, plan_shards

HIDDEN_SIZE, MOE_INTERMEDIATE_SIZE = 2048, 512  # Qwen3.5-35B-A3B
NUM_EXPERTS = 32


def write_random_set(dest: Path, *, total_bytes: int, dense_bytes: int) -> None:
    """Write about `total_bytes` of experts, and `dense_bytes` of dense weights, at `dest`."""
    layout = affine_layout(HIDDEN_SIZE, MOE_INTERMEDIATE_SIZE, group_size=64)
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
