"""Sequences decoded together: each row has the bits it has alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoint_families import NATIVE_FAMILIES
from cython_kernels import available_isas, isa
from kandiga_run import RunError, load_engine
from kandiga_run.engine import BatchingEngine, Engine, State
from packed import PackedModels

#: Prompt lengths: sequences at different places, past a TurboQuant block, past a chunk of 64.
LENGTHS = (1, 3, 40, 140, 17, 64, 65, 9, 2, 30)
STEPS = 4


def prefilled(engine: Engine, lengths: Sequence[int]) -> list[State]:
    states = []
    for seed, length in enumerate(lengths):
        state = engine.new_state(length + STEPS)
        tokens = np.random.default_rng(seed).integers(1, 300, length).astype(np.int32)
        engine.forward(tokens, state)
        states.append(state)
    return states


def step_tokens(step: int, count: int) -> NDArray[np.int32]:
    return np.random.default_rng(1000 + step).integers(1, 300, count).astype(np.int32)


def assert_rows_are_those_alone(engine: Engine, lengths: Sequence[int]) -> None:
    assert isinstance(engine, BatchingEngine)
    together, alone = prefilled(engine, lengths), prefilled(engine, lengths)
    for step in range(STEPS):
        tokens = step_tokens(step, len(lengths))
        logits = engine.forward_sequences(tokens.tolist(), together)
        for row, (token, state) in enumerate(zip(tokens, alone, strict=True)):
            expected = engine.forward(np.array([token], np.int32), state)[0]
            np.testing.assert_array_equal(logits[row], expected, err_msg=f"{step=} {row=}")
    assert [state.position for state in together] == [length + STEPS for length in lengths]


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
@pytest.mark.parametrize("arithmetic", ["int16", "int8", "exact"])
def test_rows_are_those_alone(packed: PackedModels, family: str, arithmetic: str) -> None:
    engine = load_engine(packed(family).container, engine="native", arithmetic=arithmetic)
    for count in (1, 2, 3, 4, 10):
        assert_rows_are_those_alone(engine, LENGTHS[:count])
    engine.close()


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe"])
def test_with_compressed_keys_and_values(packed: PackedModels, family: str) -> None:
    engine = load_engine(packed(family).container, engine="native", kv="k4v3")
    assert_rows_are_those_alone(engine, LENGTHS[:5])
    engine.close()


@pytest.mark.parametrize("name", available_isas())
def test_on_every_instruction_set(
    packed: PackedModels, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from cython_kernels._kernels import _force_isa

    before = isa()
    _force_isa(name)
    try:
        engine = load_engine(packed("qwen3_next").container, engine="native")
        assert_rows_are_those_alone(engine, LENGTHS[:5])
        engine.close()
    finally:
        _force_isa(before)


def test_unquantized_matrices(packed: PackedModels) -> None:
    engine = load_engine(packed("qwen3_moe", bits=None).container, engine="native")
    assert_rows_are_those_alone(engine, LENGTHS[:5])
    engine.close()


def test_owned_experts_shared_by_sequences_are_read_once(packed: PackedModels) -> None:
    container = packed("qwen3_moe").container
    engine = load_engine(container, engine="native", residency="owned")
    assert_rows_are_those_alone(engine, LENGTHS[:4])
    # The same token at the same place in four sequences: they need the same experts.
    states = prefilled(engine, (5,))
    states += [engine.new_state(20) for _ in range(3)]
    tokens = np.random.default_rng(0).integers(1, 300, 5).astype(np.int32)
    for state in states[1:]:
        engine.forward(tokens, state)
    before = engine.stats.snapshot()
    engine.forward_sequences([7] * 4, states)
    together = engine.stats.minus(before).experts_requested
    before = engine.stats.snapshot()
    engine.forward(np.array([7], np.int32), states[0])
    assert together == engine.stats.minus(before).experts_requested
    engine.close()


def test_what_cannot_work_is_refused(packed: PackedModels) -> None:
    engine = load_engine(packed("qwen3_next").container, engine="native")
    state, full = engine.new_state(8), engine.new_state(1)
    engine.forward_sequences([1, 2], [state, full])
    with pytest.raises(ValueError, match="the same state twice"):
        engine.forward_sequences([1, 2], [state, state])
    with pytest.raises(ValueError, match="1 tokens for 2 states"):
        engine.forward_sequences([1], [state, full])
    with pytest.raises(RunError, match="exceed the 1"):
        engine.forward_sequences([1, 2], [state, full])
    with pytest.raises(RunError, match="outside the vocabulary"):
        engine.forward_sequences([-1], [state])
    assert (state.position, full.position) == (1, 1)
    engine.close()
