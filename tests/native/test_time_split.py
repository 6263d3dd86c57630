"""Time split of the native engine: labelled kernel time, its sum, its cost."""

from timeit import timeit

import numpy as np
import pytest

from cython_kernels import TIME_EXPERTS, TIME_ROUTING, label_time, rms_norm, time_totals
from kandiga_run.engine import load_engine
from kandiga_run.engine.stats import KERNEL_TIMES
from packed import PackedModels


def test_kernel_time_goes_to_the_label_that_is_set() -> None:
    x, out = np.ones((64, 4096), np.float32), np.empty((64, 4096), np.float32)
    label_time(TIME_ROUTING)
    rms_norm(x, None, 1e-6, out)
    before = time_totals()
    label_time(TIME_EXPERTS)
    rms_norm(x, None, 1e-6, out)
    grown = [after - earlier for earlier, after in zip(before, time_totals(), strict=True)]
    assert grown[TIME_EXPERTS] > 0
    assert sum(grown) == grown[TIME_EXPERTS]


def test_a_label_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="label: 6, expected 0 to 5"):
        label_time(6)


def test_a_label_costs_less_than_a_microsecond() -> None:
    calls = 20_000
    # the best of several: the machine may be busy
    assert (
        min(timeit(lambda: label_time(TIME_EXPERTS), number=calls) for _ in range(5)) / calls < 1e-6
    )


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_every_part_of_a_forward_call_is_counted_once(
    packed: PackedModels, num_tokens: int
) -> None:
    engine = load_engine(packed("qwen3_5_moe").container, engine="native")
    try:
        engine.forward(np.arange(num_tokens, dtype=np.int32), engine.new_state(16))
        stats = engine.stats
        kernels = [getattr(stats, name) for name in KERNEL_TIMES]
        # So few tokens fill no block.
        assert kernels.pop(KERNEL_TIMES.index("kv_coding_seconds")) == 0
        assert all(seconds > 0 for seconds in kernels)
        assert sum(kernels) + stats.read_wait_seconds < stats.forward_seconds
        parts = sum(kernels) + stats.read_wait_seconds + stats.other_seconds
        assert parts == pytest.approx(stats.forward_seconds)
    finally:
        engine.close()


def test_coding_of_keys_and_values_is_counted_apart(packed: PackedModels) -> None:
    engine = load_engine(packed("qwen3_5_moe").container, engine="native", kv="kv4")
    try:
        engine.forward(np.arange(300, dtype=np.int32), engine.new_state(400))
        stats = engine.stats
        assert 0 < stats.kv_coding_seconds < stats.forward_seconds
        assert stats.attention_seconds > 0
    finally:
        engine.close()
