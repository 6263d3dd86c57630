"""Every mlx-lm MoE family, streamed from a container, answers what plain mlx-lm answers.

Plain mlx-lm holds the whole model in memory. A family is one line of checkpoint_families.py.
"""

import numpy as np
import pytest

from checkpoints import FAMILIES, reference_logits
from kandiga_run.engine import EngineOptions, Residency
from kandiga_run.errors import RunError
from kandiga_run.mlx_engine.engine import MlxEngine
from kandiga_run.mlx_engine.top_k import TOP_K_KEYS

from .conftest import PROMPT, PackedFactory

# Logits of the tiny checkpoints have a standard deviation of about one, so this is relative to
# them: float32 with sums in another order, over two to four layers. The largest seen is 4e-6, and
# 3e-5 on AMX, whose tile adds the products of a group one after another, not in 16 lanes.
TOLERANCE = 5e-5

# Its attention calls Metal kernels: plain mlx-lm cannot run it without an Apple GPU either.
METAL_ONLY = {"muse_spark"}
RUNNABLE = sorted(FAMILIES.keys() - METAL_ONLY)


def assert_close(logits: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE)


def decode(engine: MlxEngine, state: object, first: int, num_tokens: int) -> list[np.ndarray]:
    """Feed `first` and then each greedy choice; return the logits of every step."""
    rows, token = [], first
    for _ in range(num_tokens):
        rows.append(engine.forward(np.array([token], np.int32), state)[0])
        token = int(rows[-1].argmax())
    return rows


@pytest.mark.parametrize("residency", ["mapped", "owned"])
@pytest.mark.parametrize("family", RUNNABLE)
def test_prefill_decode_and_chunks_equal_plain_mlx_lm(
    packed: PackedFactory, family: str, residency: Residency
) -> None:
    model = packed(family)
    reference = model.reference
    with model.engine(EngineOptions(residency=residency)) as engine:
        state = engine.new_state(64)
        prefill = engine.forward(PROMPT, state, logits="all")
        assert_close(prefill, reference.prefill)

        rows = [prefill[-1], *decode(engine, state, int(prefill[-1].argmax()), 3)]
        assert_close(np.stack(rows), reference.decode)
        assert [int(row.argmax()) for row in rows] == reference.greedy.tolist()

        chunked = engine.new_state(64)
        for chunk in np.split(PROMPT, [10, 11, 20]):
            last = engine.forward(chunk, chunked)
        assert last.shape == (1, engine.vocab_size)
        assert_close(last[0], reference.prefill[-1])
        assert chunked.position == PROMPT.size


@pytest.mark.parametrize("family", RUNNABLE)
def test_mlx_lm_modules_on_stacked_experts_are_bit_exact(
    packed: PackedFactory, family: str
) -> None:
    """The same arithmetic on the same experts: nothing is left to tolerate."""
    model = packed(family)
    with model.engine(experts_on="mlx") as engine:
        assert set(engine.experts_on) == {"mlx"}
        prefill = engine.forward(PROMPT, engine.new_state(64), logits="all")
    np.testing.assert_array_equal(prefill, model.reference.prefill)


@pytest.mark.parametrize("family", sorted(set(RUNNABLE) - {"llama4"}))
def test_fewer_experts_equal_plain_mlx_lm_with_a_changed_config(
    packed: PackedFactory, family: str
) -> None:
    model = packed(family)
    # bailing_moe in plain mlx-lm crashes at one expert a token (see the test below).
    top_k = 3 if family == "bailing_moe" else 1
    wanted = reference_logits(
        model.folder, PROMPT, num_decode=1, overrides=dict.fromkeys(TOP_K_KEYS, top_k)
    ).prefill
    assert np.abs(wanted - model.reference.prefill).max() > 100 * TOLERANCE
    with model.engine(EngineOptions(num_experts_per_token=top_k)) as engine:
        assert_close(engine.forward(PROMPT, engine.new_state(64), logits="all"), wanted)
        assert engine.stats.num_experts_per_token == top_k


@pytest.mark.parametrize("family", RUNNABLE)
def test_tokens_taken_back_leave_no_trace(packed: PackedFactory, family: str) -> None:
    model = packed(family)
    start = PROMPT[:6]  # within the sliding windows, which forget what has left them
    with model.engine() as engine:
        state = engine.new_state(64)
        engine.forward(start[:4], state)
        if not state.can_trim:
            with pytest.raises(RunError, match="cannot go back"):
                state.trim(1)
            return
        engine.forward(PROMPT[-2:], state)
        state.trim(2)
        assert state.position == 4
        assert_close(engine.forward(start[4:], state), model.reference.prefill[5:6])
