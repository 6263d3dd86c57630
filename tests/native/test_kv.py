"""Compressed keys and values in the native engine: every architecture, layers, sizes, refusals."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cython_kernels import TurboQuantBlocks
from kandiga_run.cli import main
from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError
from kandiga_run.kv.recurrent import RecurrentState
from packed import PackedModels

TOKENS = np.random.default_rng(1).integers(3, 300, 400).astype(np.int32)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen3_next", "qwen3_5_moe"])
def test_every_architecture(packed: PackedModels, family: str) -> None:
    """The logits move, by less the more bits there are; recurrent layers are left alone."""
    logits, sizes = {}, {}
    for kv in ("fp16", "k8v4", "kv3"):
        engine = load_engine(packed(family).container, engine="native", kv=kv, arithmetic="exact")
        state = engine.new_state(500)
        logits[kv] = engine.forward(TOKENS, state, logits="all")
        sizes[kv] = state.nbytes, state.recurrent_nbytes
        assert engine.stats.kv == kv
        assert engine.stats.is_lossy == (kv != "fp16")
        assert state.kv_format == {"fp16": "f32"}.get(kv, kv)
        recurrent = [cache for cache in state.caches if isinstance(cache, RecurrentState)]
        assert sum(cache.nbytes for cache in recurrent) == state.recurrent_nbytes
        engine.close()
    # The first 148 tokens see nothing coded, only float16 instead of float32.
    np.testing.assert_allclose(logits["kv3"][:148], logits["fp16"][:148], atol=0.02)
    errors = {kv: np.abs(logits[kv] - logits["fp16"])[148:].mean() for kv in ("k8v4", "kv3")}
    assert 0 < errors["k8v4"] < errors["kv3"]
    kv_bytes = {kv: total - recurrent for kv, (total, recurrent) in sizes.items()}
    assert kv_bytes["kv3"] < kv_bytes["k8v4"] < kv_bytes["fp16"] / 2


def test_one_token_at_a_time_is_the_same(packed: PackedModels) -> None:
    engine = load_engine(packed("qwen3_moe").container, engine="native", kv="kv4")
    whole, single = engine.new_state(500), engine.new_state(500)
    want = engine.forward(TOKENS[:300], whole, logits="all")
    seen = [engine.forward(TOKENS[i : i + 1], single)[0] for i in range(300)]
    engine.close()
    engine = load_engine(packed("qwen3_moe").container, engine="native", kv="fp16")
    plain = engine.forward(TOKENS[:300], engine.new_state(500), logits="all")
    # Float32 sums in another order round to other halves, and those to other codes, here and there:
    # far less than the coding itself.
    by_chunks, by_coding = np.abs(np.array(seen) - want), np.abs(want - plain)
    assert by_chunks[140:].mean() < 0.1 * by_coding[140:].mean()
    engine.close()


def test_protected_layers_and_qjl(packed: PackedModels) -> None:
    engine = load_engine(
        packed("qwen3_moe").container, engine="native", kv="kv3", kv_qjl=True, kv_protect=1
    )
    state = engine.new_state(300)
    engine.forward(TOKENS[:200], state)
    formats = [cache.format for cache in state.caches]
    assert formats[0] == formats[-1] == "kv8"
    assert set(formats[1:-1]) <= {"kv3-qjl"}
    assert engine.stats.kv == "kv3-qjl, 1 boundary layers kv8"
    engine.close()


def test_an_interrupted_call_is_undone(packed: PackedModels) -> None:
    """Layers that have coded a block of the call that failed go back to where it began."""
    engine = load_engine(packed("qwen3_moe").container, engine="native", kv="kv4")
    state = engine.new_state(500)
    engine.forward(TOKENS[:130], state)
    engine.forward(TOKENS[130:330], state)
    state.trim(190)
    assert state.position == 140
    assert {cache.length for cache in state.caches} == {140}
    engine.forward(TOKENS[140:], state)
    assert state.position == 400
    engine.close()


@pytest.fixture
def raises_on_sigint() -> Iterator[None]:
    """Python's own handler, also where the tests were started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("raises_on_sigint")
def test_sigint_in_a_prompt_leaves_a_state_that_goes_on(packed: PackedModels) -> None:
    """Real signals at many moments: every layer is back where the call began, and the same call
    then gives what it gives undisturbed.
    """
    tokens = np.random.default_rng(2).integers(3, 300, 3000).astype(np.int32)
    engine = load_engine(packed("qwen3_moe").container, engine="native", kv="k4v3")
    undisturbed = engine.new_state(4000)
    started = time.perf_counter()
    engine.forward(tokens[:200], undisturbed)
    wanted = engine.forward(tokens[200:], undisturbed)
    seconds = time.perf_counter() - started
    state = engine.new_state(4000)
    engine.forward(tokens[:200], state)
    num_interrupts = 0
    for part in range(12):
        timer = threading.Timer(seconds * part / 12, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            engine.forward(tokens[200:], state)
            timer.join()
        except KeyboardInterrupt:
            num_interrupts += 1
        timer.join()
        # Chunks that were finished stay.
        assert state.position >= 200
        assert {cache.length for cache in state.caches} == {state.position}
        state.trim(state.position - 200)
    assert num_interrupts >= 3
    found = engine.forward(tokens[200:], state)
    engine.close()
    # The queries of calls that were undone have been counted, so keys are coded a little otherwise.
    assert np.abs(found - wanted).mean() < 0.1 * wanted.std()


def test_interrupt_after_a_block_was_coded(packed: PackedModels) -> None:
    """It is raised when the kernel returns, before anything else of the cache has changed."""

    class InterruptedBlocks(TurboQuantBlocks):
        is_armed = True

        def encode(self, *arguments: Any) -> None:
            super().encode(*arguments)
            if self.is_armed:
                raise KeyboardInterrupt

    engine = load_engine(packed("qwen3_moe").container, engine="native", kv="kv4")
    state = engine.new_state(500)
    engine.forward(TOKENS[:100], state)
    last = state.caches[-1]
    num_heads, head_dim = last.head_shape
    blocks = last._blocks = InterruptedBlocks(num_heads, head_dim, 4, 4)
    with pytest.raises(KeyboardInterrupt):
        engine.forward(TOKENS[100:300], state)
    blocks.is_armed = False
    assert {cache.length for cache in state.caches} == {100}
    assert (len(blocks), blocks.num_tokens) == (0, 0)
    found = engine.forward(TOKENS[100:300], state)
    wanted = engine.forward(TOKENS[:300], engine.new_state(500))
    assert np.abs(found - wanted).mean() < 0.1 * wanted.std()
    engine.close()


def test_budget_has_room_for_a_longer_compressed_state(packed: PackedModels) -> None:
    sizes = {}
    for kv in ("fp16", "kv3"):
        engine = load_engine(packed("qwen3_moe").container, engine="native", kv=kv)
        sizes[kv] = engine._decoder.state_bytes(100_000, engine._kv)
        engine.close()
    # float32 here, since the tiny checkpoint is.
    assert sizes["fp16"] > 8 * sizes["kv3"]


def test_choices_that_cannot_work(packed: PackedModels) -> None:
    container = packed("qwen3_moe").container
    with pytest.raises(RunError, match="kv is 'kv5'"):
        load_engine(container, engine="native", kv="kv5")
    with pytest.raises(RunError, match="belong to a compressed KV cache"):
        load_engine(container, engine="native", kv_protect=2)
    with pytest.raises(RunError, match="--kv-qjl: the mlx engine has no QJL stage"):
        load_engine(container, engine="mlx", kv="kv3", kv_qjl=True)


def test_command_line(packed: PackedModels, capsys: pytest.CaptureFixture[str]) -> None:
    folder: Path = packed("qwen3_moe").container
    arguments = ["run", str(folder), "--raw", "a b c", "--max-tokens", "3", "--engine", "native"]
    assert main([*arguments, "--kv", "k4v3", "--json"]) == 0
    captured = capsys.readouterr()
    stats = json.loads(captured.out)["stats"]
    assert stats["kv"]["choice"] == stats["kv"]["format"] == "k4v3"
    assert stats["is_lossy"] is True
    assert "lossy: keys and values held as k4v3" in captured.err
    assert main([*arguments, "--kv-qjl"]) != 0
    assert "belong to a compressed KV cache, and kv is auto" in capsys.readouterr().err
