"""Dense weights beside mapped experts: copied in the background, the same numbers from there."""

import time
from collections.abc import Iterable

import numpy as np
import pytest

from kandiga_run.background import GaveUp
from kandiga_run.container import Model
from kandiga_run.engine import load_engine
from kandiga_run.native import dense_move
from kandiga_run.native.dense_copy import DenseCopy
from kandiga_run.native.dense_move import DenseMove
from kandiga_run.native.engine import NativeEngine
from kandiga_run.native.weights import Weights
from packed import PackedModels


def mapped_engine(packed: PackedModels, family: str) -> NativeEngine:
    engine = load_engine(packed(family).container, engine="native", residency="mapped")
    assert isinstance(engine, NativeEngine)
    return engine


@pytest.mark.parametrize("family", ["qwen3_5_moe", "mixtral"])
def test_the_copy_gives_the_same_logits(
    packed: PackedModels, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = np.arange(3, 40, dtype=np.int32)
    logits = []
    for share in (0.0, 0.95):
        monkeypatch.setattr(dense_move, "_MOST_SHARE", share)
        engine = mapped_engine(packed, family)
        engine._dense.wait()
        engine._dense_move.wait()
        assert engine._dense_move._is_filled == (share > 0.0)
        logits.append(engine.forward(prompt, engine.new_state(64), logits="all"))
        engine.close()
    np.testing.assert_array_equal(*logits)


def test_matrices_move_between_two_calls(packed: PackedModels) -> None:
    engine = mapped_engine(packed, "qwen3_moe")
    state = engine.new_state(8)
    for token in range(3, 8):
        engine.forward(np.array([token], np.int32), state)
    engine._dense_move.wait()
    engine.forward(np.array([9], np.int32), state)
    assert engine._dense_move._copy is None
    engine.close()


def test_closing_ends_the_copying(packed: PackedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.open(packed("mixtral").container)
    weights = Weights(model)
    name = "model.layers.0.self_attn.q_proj"
    tensor = model.dense[f"{name}.weight"]
    matrix = weights.linear(name, tensor.shape[0], model.text_config.positive("hidden_size"))
    DenseMove(model, weights).close()  # never started
    move = DenseMove(model, weights)

    def fill_when_given_up(self: DenseCopy, names: Iterable[str], gave_up: GaveUp) -> None:
        while not gave_up():
            time.sleep(0.001)
        fill_alone(self, names, gave_up)

    fill_alone = DenseCopy.fill_alone
    monkeypatch.setattr(DenseCopy, "fill_alone", fill_when_given_up)
    move.start()
    move.close()
    move.take()
    assert not move._is_filled
    assert matrix.nbytes > 0
    model.close()
