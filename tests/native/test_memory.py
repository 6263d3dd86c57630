"""A memory budget covers everything, and one that cannot work is refused with one that can."""

import mmap
import re

import numpy as np
import pytest

from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError
from kandiga_run.memory.use import available_bytes, memory_use, physical_bytes
from packed import PackedModels

MIB = 1 << 20
PROMPT = np.arange(3, 40, dtype=np.int32)


def test_too_small_a_budget_names_the_smallest(packed: PackedModels) -> None:
    container = packed("qwen3_next").container
    with pytest.raises(RunError, match=r"dense weights .* buffers .* KV cache") as caught:
        load_engine(container, engine="native", memory_bytes=MIB)
    smallest = float(re.search(r"smallest that works is (\d+)MiB", str(caught.value))[1])
    # This process has grown a little since: what it takes itself is part of the budget.
    engine = load_engine(container, engine="native", memory_bytes=int((smallest + 8) * MIB))
    assert engine.stats.residency == "owned"
    roomy = load_engine(container, engine="native")
    logits = [each.forward(PROMPT, each.new_state(64)) for each in (engine, roomy)]
    np.testing.assert_array_equal(*logits)
    engine.close()
    roomy.close()


def test_context_and_experts_share_the_budget(packed: PackedModels) -> None:
    container = packed("qwen3_moe").container
    budget = memory_use().resident_bytes + 64 * MIB
    engine = load_engine(container, engine="native", memory_bytes=budget, kv="fp16")
    all_experts = engine._store.nbytes
    assert all_experts == engine._model.expert_bytes
    with pytest.raises(RunError, match="KV cache of 1000000 tokens"):
        engine.new_state(1_000_000)

    kv_bytes_per_token = 2 * 2 * 2 * 32 * 4  # layers, keys and values, heads, head_dim, float32
    fixed = engine._own_bytes + engine._scratch_bytes
    dense = engine._weights.nbytes + engine._weights.touched_bytes(1_000_000)
    long = engine.new_state((budget - fixed - dense - all_experts // 2) // kv_bytes_per_token)
    assert engine._store.nbytes <= all_experts // 2
    logits = engine.forward(PROMPT, long)
    del long
    np.testing.assert_array_equal(engine.forward(PROMPT, engine.new_state(64)), logits)
    assert engine._store.nbytes == all_experts
    engine.close()


def test_mapped_cannot_keep_a_budget(packed: PackedModels) -> None:
    with pytest.raises(RunError, match="leave one of the two out"):
        load_engine(
            packed("mixtral").container, engine="native", residency="mapped", memory_bytes=1 << 30
        )


def test_memory_of_this_process() -> None:
    before = memory_use()
    # A mapping of its own: malloc may hand out memory that earlier tests gave back.
    private = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = np.frombuffer(private, np.uint8)
    block[:] = 1
    after = memory_use()
    assert after.resident_bytes - before.resident_bytes > 50 * MIB
    assert after.peak_resident_bytes >= after.resident_bytes - MIB
    if after.anonymous_bytes is not None and after.file_bytes is not None:
        assert after.anonymous_bytes - before.anonymous_bytes > 50 * MIB
        assert after.anonymous_bytes + after.file_bytes <= after.resident_bytes
    assert 0 < available_bytes() <= physical_bytes()
    assert block[-1] == 1
