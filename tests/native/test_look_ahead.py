"""Experts read before the router has asked for them: fewer waits, the same answers."""

from collections.abc import Iterator

import numpy as np
import pytest

from fetching import arrived
from kandiga_run.container import Model
from kandiga_run.engine import load_engine
from kandiga_run.engine.stats import RunStats
from kandiga_run.experts import guesses
from kandiga_run.experts.guesses import MOST_GUESSED, Guesses
from kandiga_run.experts.owned import OwnedStore
from kandiga_run.native.engine import NativeEngine
from packed import PackedModels

TOKENS = np.array([7, 300, 7, 12, 90, 41, 5, 6], np.int32)
# More experts than slots, so that some must be read for every token.
OVERRIDES = {"num_experts": 64, "num_experts_per_tok": 4, "num_hidden_layers": 4}


@pytest.fixture(params=["qwen3_moe", "qwen3_5_moe", "mixtral"])
def engine(request: pytest.FixtureRequest, packed: PackedModels) -> Iterator[NativeEngine]:
    overrides = {"num_local_experts": 64} if request.param == "mixtral" else OVERRIDES
    container = packed(request.param, overrides=overrides).container
    engine = load_engine(container, engine="native", residency="owned")
    assert isinstance(engine, NativeEngine)
    engine._store.resize(20 * engine._model.container.layout(0).block_bytes)
    yield engine
    engine.close()


def answer(engine: NativeEngine) -> np.ndarray:
    state = engine.new_state(TOKENS.size)
    return np.concatenate([engine.forward(TOKENS[i : i + 1], state) for i in range(TOKENS.size)])


def test_guesses_are_read_and_change_no_bit(engine: NativeEngine) -> None:
    with_guesses = answer(engine)
    stats = engine.stats
    assert 0 < stats.experts_read_ahead_used <= stats.experts_read_ahead
    in_vain = stats.experts_read_ahead - stats.experts_read_ahead_used
    assert stats.experts_read + stats.experts_reused == stats.experts_requested + in_vain
    engine._store._guesses._pause = 10**9
    before = stats.snapshot()
    np.testing.assert_array_equal(answer(engine), with_guesses)
    assert stats.minus(before).experts_read_ahead == 0


@pytest.mark.parametrize("engine", ["qwen3_moe", "qwen3_5_moe"], indirect=True)
def test_guesses_are_far_better_than_chance(engine: NativeEngine) -> None:
    """Layers of random checkpoints change the hidden state more than those of trained ones."""
    answer(engine)
    chance = OVERRIDES["num_experts_per_tok"] / OVERRIDES["num_experts"]
    stats = engine.stats
    assert stats.experts_read_ahead_used >= 3 * chance * stats.experts_read_ahead > 0


@pytest.fixture
def store(packed: PackedModels) -> Iterator[tuple[Model, OwnedStore]]:
    with Model.open(packed("mixtral").container) as model:
        store = OwnedStore(model.container, 7 * model.container.layout(0).block_bytes)
        yield model, store
        store.close()


def test_what_was_guessed_is_read_after_what_is_wanted(store: tuple[Model, OwnedStore]) -> None:
    model, owned = store
    with owned.fetch(0, np.arange(3, dtype=np.int32)) as arrivals:
        owned.guess(1, [5, 2, 7, 6, 1])
        assert owned.stats.experts_read == 3
        assert len(list(arrivals)) == 3
    assert owned.stats.experts_read == 3 + MOST_GUESSED
    assert sorted(arrived(owned, model.container, 1, [2, 5, 0])) == [0, 2, 5]
    assert owned.stats.experts_read == 3 + MOST_GUESSED + 1
    assert owned.stats.experts_read_ahead_used == 2
    # What was guessed wrong holds no slot: all of them serve a layer again.
    assert sorted(arrived(owned, model.container, 0, list(range(8)))) == list(range(8))


def test_a_guess_for_another_layer_is_dropped(store: tuple[Model, OwnedStore]) -> None:
    model, owned = store
    with owned.fetch(0, np.arange(2, dtype=np.int32)) as arrivals:
        owned.guess(1, [0, 1, 2])
        list(arrivals)
    for layer in (0, 1):
        assert sorted(arrived(owned, model.container, layer, list(range(8)))) == list(range(8))
    assert owned.stats.experts_read_ahead_used == 0


def test_guesses_stop_while_they_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "_PAUSE", 5)
    stats = RunStats()
    judge = Guesses(stats)
    stats.experts_read_ahead, stats.experts_read_ahead_used = 255, 0
    assert judge.pay()
    stats.experts_read_ahead += 1
    assert [judge.pay() for _ in range(6)] == [False] * 6
    assert judge.pay()
    stats.experts_read_ahead += 300
    stats.experts_read_ahead_used += 200
    assert judge.pay()
