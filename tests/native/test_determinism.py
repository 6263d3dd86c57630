"""The same bits, whatever the residency, the order of arrival, the slots or the threads."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from checkpoints import NATIVE_FAMILIES
from cython_kernels import num_threads, set_num_threads
from kandiga_run.engine import load_engine
from kandiga_run.experts import store
from kandiga_run.experts.owned import smallest_budget
from kandiga_run.native.engine import NativeEngine
from packed import Packed, PackedModels

PROMPT = np.random.default_rng(3).integers(3, 320, 41).astype(np.int32)
OVERRIDES = {"num_experts_per_tok": 5}


def run(model: Packed, **options: Any) -> np.ndarray:
    """Return the logits of a prefill in two chunks and of a few decode steps."""
    engine = load_engine(model.container, engine="native", **options)
    logits = forward(engine)
    engine.close()
    return logits


def forward(engine: NativeEngine) -> np.ndarray:
    state = engine.new_state(PROMPT.size + 4)
    chunks = [PROMPT[:30], PROMPT[30:], *np.array([[7], [300], [7]], np.int32)]
    return np.concatenate([engine.forward(chunk, state, logits="all") for chunk in chunks])


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_residency_changes_no_bit(packed: PackedModels, family: str) -> None:
    model = packed(family, overrides=OVERRIDES)
    mapped = run(model, residency="mapped")
    np.testing.assert_array_equal(run(model, residency="mapped"), mapped)
    np.testing.assert_array_equal(run(model, residency="owned"), mapped)


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_the_fewest_slots_change_no_bit(packed: PackedModels, family: str) -> None:
    """Two slots for five experts a token: every layer is computed in waves."""
    model = packed(family, overrides=OVERRIDES)
    engine = load_engine(model.container, engine="native", residency="owned")
    plenty = forward(engine)
    engine._store.resize(smallest_budget(engine._model.container))
    before = engine.stats.snapshot()
    np.testing.assert_array_equal(forward(engine), plenty)
    assert engine.stats.minus(before).experts_read > engine.stats.minus(before).experts_reused
    engine.close()


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_order_of_arrival_changes_no_bit(
    packed: PackedModels, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed(family, overrides=OVERRIDES)
    expected = run(model)
    shuffled = random.Random(1)
    batches_as_they_come = store.Arrivals.batches

    def one_by_one_in_any_order(self: store.Arrivals) -> Iterator[list[store.Arrival]]:
        everything = [arrival for batch in batches_as_they_come(self) for arrival in batch]
        shuffled.shuffle(everything)
        for arrival in everything:
            yield [arrival]

    monkeypatch.setattr(store.Arrivals, "batches", one_by_one_in_any_order)
    np.testing.assert_array_equal(run(model), expected)


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_threads_change_no_bit(packed: PackedModels, family: str) -> None:
    model = packed(family, overrides=OVERRIDES)
    before = num_threads()
    try:
        one = run(model, num_threads=1, num_readers=1)
        np.testing.assert_array_equal(run(model, num_threads=3, num_readers=5), one)
    finally:
        set_num_threads(before)


def test_two_sequences_do_not_disturb_each_other(packed: PackedModels) -> None:
    model = packed("qwen3_5_moe")
    engine = load_engine(model.container, engine="native")
    alone = engine.new_state(64)
    expected = [engine.forward(token, alone) for token in PROMPT.reshape(-1, 1)]
    first, second = engine.new_state(64), engine.new_state(64)
    for token, logits in zip(PROMPT.reshape(-1, 1), expected, strict=True):
        np.testing.assert_array_equal(engine.forward(token, first), logits)
        engine.forward(token[::-1] + 1 - (token == 319), second)
    engine.close()
