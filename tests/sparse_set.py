"""A set in the shape of the largest published model, whose weights are holes in its files.

Every offset, size, index entry and checksum is real; the weights are zeros that take no disk.
"""

from __future__ import annotations

from pathlib import Path

from containers import affine_layout, make_meta
from formats import DEFAULT_SHARD_BYTES, DenseSpec, SetWriter, plan_shards
from holes import experts_are_holes

# Qwen3.5-397B-A17B at 4 bits: 217 GB of experts in shards of 8 GiB.
NUM_LAYERS, NUM_EXPERTS = 60, 512
HIDDEN_SIZE, MOE_INTERMEDIATE_SIZE = 4096, 1024
NUM_DENSE = 2400


def write_sparse_set(dest: Path, *, num_experts: int = NUM_EXPERTS) -> None:
    """Write the set at `dest`; it takes a few megabytes and a second."""
    layout = affine_layout(HIDDEN_SIZE, MOE_INTERMEDIATE_SIZE, group_size=64)
    layers = [(layer, num_experts, layout) for layer in range(NUM_LAYERS)]
    specs = [
        DenseSpec(f"model.layers.{index // 40}.linear_attn.tensor_{index % 40}", "u8", (128,))
        for index in range(NUM_DENSE)
    ]
    # As many shards whatever the number of experts.
    shard_bytes = DEFAULT_SHARD_BYTES * num_experts // NUM_EXPERTS
    plan = plan_shards(128 * NUM_DENSE, layers, shard_bytes=shard_bytes)
    with experts_are_holes(), SetWriter(dest, plan, make_meta(layers), specs) as writer:
        for spec in specs:
            writer.write_dense(spec.name, bytes(128))
        for layer in range(NUM_LAYERS):
            for expert in range(num_experts):
                writer.submit_expert(layer, expert, lambda views: None)
        writer.commit()
