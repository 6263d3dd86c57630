"""Opening stays cheap at the largest published shape: 60 layers of 512 experts.

The time is measured by tests/benchmarks/open_cost.py; here is what the time follows from.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from pathlib import Path

import pytest

from formats import open_set
from formats.constants import EXPERT_ENTRY_BYTES
from sparse_set import NUM_DENSE, NUM_EXPERTS, NUM_LAYERS, write_sparse_set

MAX_PEAK_BYTES = 50 << 20
INDEX_BYTES = NUM_LAYERS * NUM_EXPERTS * EXPERT_ENTRY_BYTES
# A dense tensor and a layer may have objects of their own; measured 700 and 900 bytes.
HELD_BYTES_EACH_TENSOR, HELD_BYTES_EACH_LAYER = 1200, 2000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("large") / "model"
    write_sparse_set(dest)
    return dest


def test_the_set_is_as_large_as_it_claims(large: Path) -> None:
    status = [shard.stat() for shard in large.glob("*.kexp")]
    assert sum(each.st_size for each in status) > 200 * 10**9
    assert sum(each.st_blocks * 512 for each in status) < 50 * 10**6


def test_memory_is_the_index_and_little_else(large: Path) -> None:
    open_set(large).close()  # whatever is imported or cached once
    gc.collect()
    tracemalloc.start()
    opened = open_set(large)
    held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < MAX_PEAK_BYTES
    assert held_bytes - INDEX_BYTES < (
        NUM_DENSE * HELD_BYTES_EACH_TENSOR + NUM_LAYERS * HELD_BYTES_EACH_LAYER
    )
    opened.close()


def test_no_object_for_each_expert(large: Path) -> None:
    gc.collect()
    before = len(gc.get_objects())
    opened = open_set(large)
    # 30720 experts: with an object each this would be ten times as many.
    assert len(gc.get_objects()) - before < 4 * NUM_DENSE
    opened.close()


def test_no_line_of_python_runs_for_each_expert(large: Path, tmp_path: Path) -> None:
    """What takes the time is counted: lines executed, which no other program disturbs."""
    write_sparse_set(tmp_path / "small", num_experts=8)
    more_experts = NUM_LAYERS * (NUM_EXPERTS - 8)
    assert lines_executed(large) - lines_executed(tmp_path / "small") < more_experts / 100


def lines_executed(folder: Path) -> int:
    num_lines = 0

    def count(frame: object, event: str, argument: object) -> object:
        nonlocal num_lines
        num_lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        open_set(folder).close()
    finally:
        sys.settrace(before)
    return num_lines


def test_blocks_are_right_at_the_ends(large: Path) -> None:
    with open_set(large) as opened:
        for layer, expert in ((0, 0), (0, 511), (31, 256), (59, 0), (59, 511)):
            assert not any(bytes(opened.block(layer, expert)))
