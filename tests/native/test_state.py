"""States: room, trimming, growth, and what they weigh."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kandiga_run.engine import Engine, load_engine
from kandiga_run.errors import RunError
from kandiga_run.generation.kept_state import KeptState
from kandiga_run.kv.plain import PlainKVCache
from packed import PackedModels

PROMPT = np.arange(3, 33, dtype=np.int32)


@pytest.fixture
def engine(packed: PackedModels) -> Engine:
    engine = load_engine(packed("qwen3_moe").container, engine="native")
    yield engine
    engine.close()


@pytest.fixture
def hybrid(packed: PackedModels) -> Engine:
    engine = load_engine(packed("qwen3_next").container, engine="native")
    yield engine
    engine.close()


def test_room_is_counted(engine: Engine) -> None:
    state = engine.new_state(31)
    engine.forward(PROMPT, state)
    assert (state.position, state.max_tokens) == (30, 31)
    engine.forward(PROMPT[:1], state)
    with pytest.raises(RunError, match="1 more tokens at position 31 exceed the 31"):
        engine.forward(PROMPT[:1], state)
    assert state.position == 31


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], r"tokens of shape \(0,\)"),
        ([[1, 2]], r"tokens of shape \(1, 2\)"),
        ([1, 320], "token 320 is outside the vocabulary of 320"),
        ([-1], "token -1 is outside"),
    ],
)
def test_impossible_tokens(engine: Engine, tokens: list, message: str) -> None:
    state = engine.new_state(8)
    with pytest.raises(RunError, match=message):
        engine.forward(np.array(tokens, np.int32), state)
    assert state.position == 0


def test_a_state_for_no_tokens(engine: Engine) -> None:
    with pytest.raises(RunError, match="wanted at least 1"):
        engine.new_state(0)


def test_a_closed_engine(packed: PackedModels) -> None:
    engine = load_engine(packed("mixtral").container, engine="native")
    state = engine.new_state(8)
    engine.close()
    engine.close()
    with pytest.raises(RunError, match="closed"):
        engine.forward(PROMPT[:1], state)


@pytest.mark.parametrize("residency", ["mapped", "owned"])
def test_closing_unmaps_the_container(packed: PackedModels, tmp_path: Path, residency: str) -> None:
    container = shutil.copytree(packed("qwen3_next").container, tmp_path / "container")
    engine = load_engine(container, engine="native", residency=residency)
    state = engine.new_state(40)
    engine.forward(PROMPT, state)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list mappings")
    assert str(container) in maps.read_text()
    engine.close()
    assert str(container) not in maps.read_text()


def test_trimming_goes_back(engine: Engine) -> None:
    state = engine.new_state(64)
    engine.forward(PROMPT[:20], state)
    expected = engine.forward(PROMPT[20:21], state)
    engine.forward(PROMPT[25:], state)
    state.trim(6)
    assert state.position == 20
    np.testing.assert_array_equal(engine.forward(PROMPT[20:21], state), expected)


def test_recurrent_layers_cannot_go_back(hybrid: Engine) -> None:
    state = hybrid.new_state(64)
    hybrid.forward(PROMPT, state)
    assert not state.can_trim
    state.trim(0)
    with pytest.raises(RunError, match="cannot go back"):
        state.trim(1)


def test_memory_grows_with_the_sequence(engine: Engine) -> None:
    """A long context costs what has been used of it, and no more than announced."""
    config_values = 2 * 2 * 32  # keys and values, two heads of 32
    state = engine.new_state(100_000)
    assert state.nbytes < 100_000 * config_values
    short = state.nbytes
    tokens = np.full(700, 5, np.int32)
    engine.forward(tokens, state)
    layers, float32 = 2, 4
    assert short < state.nbytes
    assert 700 <= state.nbytes / (layers * config_values * float32) <= 2 * 700


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_grown_cache_holds_the_same(dtype: type) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((2, 600, 3, 16)).astype(np.float32)
    queries = random.standard_normal((1, 6, 16)).astype(np.float32)
    outs = np.zeros((2, 1, 6, 16), np.float32)
    growing, fixed = PlainKVCache(3, 16, 600, dtype), PlainKVCache(3, 16, 600, dtype)
    for start in range(0, 600, 50):
        growing.append(rows[0, start : start + 50], rows[1, start : start + 50])
    fixed.append(rows[0], rows[1])
    for cache, out in zip((growing, fixed), outs, strict=True):
        cache.attend(queries, 0.25, out)
    assert growing.nbytes == fixed.nbytes == PlainKVCache.bytes_for(3, 16, 600, dtype)
    np.testing.assert_array_equal(outs[0], outs[1])
    with pytest.raises(ValueError, match="601 tokens in a cache made for 600"):
        growing.append(rows[0, :1], rows[1, :1])


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_the_cache_is_as_precise_as_the_checkpoint(
    packed: PackedModels, dtype: str, item_bytes: int
) -> None:
    engine = load_engine(packed("qwen3_moe", dtype=dtype).container, engine="native")
    assert engine.new_state(10).nbytes == 2 * (2 * 2 * 32) * 10 * item_bytes
    engine.close()


def interrupt_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """Let the next use of a layer's experts end as Ctrl-C would."""
    fetch = engine._store.fetch

    def interrupted(fetched_layer: int, experts: np.ndarray) -> object:
        if fetched_layer == layer:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return fetch(fetched_layer, experts)

    monkeypatch.setattr(engine._store, "fetch", interrupted)
    # Experts that are in memory are not fetched.
    monkeypatch.setattr(engine._store, "addresses", lambda layer, experts: None)
    monkeypatch.setattr(engine._store, "table", lambda layer: None)


def test_an_interrupted_call_leaves_no_trace(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, untouched = engine.new_state(64), engine.new_state(64)
    for each in (state, untouched):
        engine.forward(PROMPT[:10], each)
    interrupt_once(engine, monkeypatch, layer=1)
    with pytest.raises(KeyboardInterrupt):
        engine.forward(PROMPT[10:], state)
    assert state.position == 10
    np.testing.assert_array_equal(
        engine.forward(PROMPT[20:], state), engine.forward(PROMPT[20:], untouched)
    )


def test_an_interrupted_recurrent_state_is_not_used_again(
    hybrid: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = hybrid.new_state(64)
    interrupt_once(hybrid, monkeypatch, layer=0)
    with pytest.raises(KeyboardInterrupt):
        hybrid.forward(PROMPT, state)
    with pytest.raises(RunError, match="start a new one"):
        hybrid.forward(PROMPT, state)
    hybrid.forward(PROMPT, hybrid.new_state(64))


class GivenUp(Exception):
    """What a caller raises who wants no answer any more."""


def given_up_at(layer: int) -> Callable[[], None]:
    """Return a hook that gives up before layer `layer`, counted from 0."""
    calls = iter(range(layer))

    def between_layers() -> None:
        if next(calls, None) is None:
            raise GivenUp

    return between_layers


@pytest.mark.parametrize("layer", [0, 1])
def test_a_call_given_up_between_layers_leaves_no_trace(engine: Engine, layer: int) -> None:
    state, untouched = engine.new_state(64), engine.new_state(64)
    for each in (state, untouched):
        engine.forward(PROMPT[:10], each)
    with pytest.raises(GivenUp):
        engine.forward(PROMPT[10:], state, between_layers=given_up_at(layer))
    assert (state.position, state.is_broken) == (10, False)
    np.testing.assert_array_equal(
        engine.forward(PROMPT[20:], state), engine.forward(PROMPT[20:], untouched)
    )


def test_a_hybrid_state_given_up_between_layers_goes_back_to_its_mark(hybrid: Engine) -> None:
    state, untouched = hybrid.new_state(64), hybrid.new_state(64)
    for each in (state, untouched):
        hybrid.forward(PROMPT[:10], each)
    mark = state.mark()
    hybrid.forward(PROMPT[10:12], state)
    with pytest.raises(GivenUp):
        hybrid.forward(PROMPT[12:], state, between_layers=given_up_at(1))
    assert (state.position, state.is_broken) == (12, True)
    state.rewind(mark)
    assert (state.position, state.is_broken) == (10, False)
    np.testing.assert_array_equal(
        hybrid.forward(PROMPT[20:], state), hybrid.forward(PROMPT[20:], untouched)
    )


def test_what_is_kept_between_turns_survives_a_call_given_up(hybrid: Engine) -> None:
    """With a mark the kept state goes back there, without one it is forgotten."""
    tokens = PROMPT.tolist()
    for marked, seen in ((True, tokens[:10]), (False, [])):
        kept = KeptState(hybrid, 64)
        state = kept.fit(tokens[:10])
        hybrid.forward(PROMPT[:10], state)
        if marked:
            kept.mark()
        with pytest.raises(GivenUp):
            hybrid.forward(PROMPT[10:], state, between_layers=given_up_at(1))
        kept.note(tokens)
        assert kept.seen == seen
        again = kept.fit(tokens)
        logits = hybrid.forward(PROMPT[again.position :], again)
        pieces = hybrid.new_state(64)
        if marked:
            hybrid.forward(PROMPT[:10], pieces)
        assert np.array_equal(logits, hybrid.forward(PROMPT[pieces.position :], pieces))


def test_a_state_of_a_batch_that_failed_is_released(
    hybrid: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody brings it back to a mark, and the others need the memory."""
    states = [hybrid.new_state(64) for _ in range(2)]
    marks = [state.mark() for state in states]
    interrupt_once(hybrid, monkeypatch, layer=0)
    with pytest.raises(KeyboardInterrupt):
        hybrid.forward_sequences([3, 4], states)
    assert [state.nbytes for state in states] == [0, 0]
    with pytest.raises(ValueError, match="was released"):
        states[0].rewind(marks[0])


@pytest.mark.parametrize("family", ["engine", "hybrid"])
def test_going_back_to_a_mark(family: str, request: pytest.FixtureRequest) -> None:
    """The bits that follow a mark are those that followed it the first time."""
    engine: Engine = request.getfixturevalue(family)
    state = engine.new_state(64)
    engine.forward(PROMPT[:12], state)
    mark = state.mark()
    first = engine.forward(PROMPT[12:], state).copy()
    for _ in range(2):
        state.rewind(mark)
        assert state.position == mark.position == 12
        engine.forward(PROMPT[20:], state)
    state.rewind(mark)
    assert np.array_equal(engine.forward(PROMPT[12:], state), first)
    assert mark.nbytes == (state.recurrent_nbytes if family == "hybrid" else 0)
    with pytest.raises(ValueError, match="not a mark of the past 30 tokens"):
        state.rewind(replace(mark, position=31))
