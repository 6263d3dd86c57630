"""Opening stays cheap at the largest published shape: 60 layers of 512 experts."""

from __future__ import annotations

import gc
import time
import tracemalloc
from pathlib import Path

import pytest

from containers import make_meta
from formats import DenseSpec, Layout, Part, SetWriter, open_set, plan_shards
from formats.shard_writer import BlockPlace

NUM_LAYERS, NUM_EXPERTS = 60, 512
NUM_DENSE = 2400

# Measured 25 ms and 3 MB with two busy processors; the margin is for slower machines, and an
# object for each expert (30720 of them) would break both.
MAX_SECONDS = 0.25
MAX_BYTES = 16 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of a 397B model with blocks of zeros, which are left as holes in the files."""
    layout = Layout.build([Part("up", "weight", "u8", (8, 8))])
    layers = [(layer, NUM_EXPERTS, layout) for layer in range(NUM_LAYERS)]
    specs = [
        DenseSpec(f"model.layers.{index // 40}.linear_attn.tensor_{index % 40}", "u8", (128,))
        for index in range(NUM_DENSE)
    ]
    dest = tmp_path_factory.mktemp("large") / "model"
    plan = plan_shards(0, layers, shard_bytes=1 << 25)
    parts = {("up", "weight"): bytes(64)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockPlace, "write", lambda place, block: None)
        with SetWriter(dest, plan, make_meta(layers), specs) as writer:
            for spec in specs:
                writer.write_dense(spec.name, bytes(128))
            for layer, _, _ in layers:
                for expert in range(NUM_EXPERTS):
                    writer.write_expert(layer, expert, parts)
            writer.commit()
    return dest


def test_opening_is_fast(large: Path) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        open_set(large).close()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < MAX_SECONDS


def test_opening_keeps_no_object_for_each_expert(large: Path) -> None:
    tracemalloc.start()
    opened = open_set(large)
    held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < MAX_BYTES
    gc.collect()
    assert len(opened.layers) == NUM_LAYERS
    # The dense tensors may have an object each; what is left for the index is next to nothing.
    assert held_bytes < NUM_DENSE * 1200 + NUM_LAYERS * 2000
    opened.close()


def test_blocks_are_right_at_the_ends(large: Path) -> None:
    with open_set(large) as opened:
        for layer, expert in ((0, 0), (0, 511), (31, 256), (59, 0), (59, 511)):
            assert bytes(opened.block(layer, expert)) == bytes(64)
