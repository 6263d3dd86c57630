"""A made-up depth costs what a real one does: the same caches, the same room, finite logits."""

from contextlib import closing

import numpy as np
import pytest

from kandiga_run.bench.depth import reach_depth
from kandiga_run.engine import load_engine
from packed import PackedModels

DEPTH = 1500  # more than one piece of a made-up cache, more than one chunk of a prefill


@pytest.mark.parametrize("family", ["mixtral", "qwen3_5_moe"])
def test_a_made_up_state_is_like_a_prefilled_one(packed: PackedModels, family: str) -> None:
    with closing(load_engine(packed(family).container, engine="native")) as engine:
        tokens = (np.arange(DEPTH) % engine.vocab_size).astype(np.int32)
        made_up, real = engine.new_state(DEPTH + 1), engine.new_state(DEPTH + 1)
        assert reach_depth(engine, made_up, tokens, real=False) == "made-up"
        assert reach_depth(engine, real, tokens, real=True) == "prefilled"
        assert made_up.position == real.position == DEPTH
        assert made_up.nbytes == real.nbytes
        logits = engine.forward(tokens[:1], made_up)
        assert np.isfinite(logits).all()


def test_other_engines_prefill(packed: PackedModels) -> None:
    with closing(load_engine(packed("qwen3_moe").container, engine="mlx")) as engine:
        state = engine.new_state(9)
        assert reach_depth(engine, state, np.arange(8, dtype=np.int32), real=False) == "prefilled"
        assert state.position == 8


def test_depth_zero_needs_nothing(packed: PackedModels) -> None:
    with closing(load_engine(packed("mixtral").container, engine="native")) as engine:
        state = engine.new_state(1)
        assert reach_depth(engine, state, np.zeros(0, np.int32), real=False) == "empty"
