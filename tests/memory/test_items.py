"""What memory is used for, as `--stats` and `bench` say it."""

import numpy as np
import pytest

from kandiga_run.engine import load_engine
from kandiga_run.memory.items import describe_items, memory_items
from kandiga_run.memory.use import MemoryUse, memory_use
from kandiga_run.native.engine import NativeEngine
from packed import PackedModels

MB = 10**6


def test_items_of_an_owned_engine(packed: PackedModels) -> None:
    engine = load_engine(packed("mixtral").container, engine="native", residency="owned")
    assert isinstance(engine, NativeEngine)
    use = memory_use()
    if use.anonymous_bytes is None:
        pytest.skip("this system does not tell anonymous memory apart")
    before = memory_items(engine, use)
    state = engine.new_state(100)
    engine.forward(np.arange(5, dtype=np.int32), state)
    after = memory_items(engine, memory_use())
    engine.close()
    assert before is not None
    assert after is not None
    assert before["experts"] == before["kv_cache"] == 0
    blocks = after["experts"] // engine._model.container.layout(0).block_bytes
    assert 2 <= blocks <= 2 * 8  # of two layers, and at most what was asked for
    assert after["kv_cache"] == state.nbytes
    assert after["dense_weights"] == before["dense_weights"] > 0
    assert after["everything_else"] > 0
    assert sum(before.values()) == use.anonymous_bytes


def test_mapped_weights_are_not_our_own(packed: PackedModels) -> None:
    engine = load_engine(packed("mixtral").container, engine="native", residency="mapped")
    assert isinstance(engine, NativeEngine)
    assert engine.memory_items()["experts"] == 0
    assert engine.memory_items()["dense_weights"] == 0
    engine.close()


def test_systems_that_do_not_say(packed: PackedModels) -> None:
    engine = load_engine(packed("mixtral").container, engine="native")
    assert memory_items(engine, MemoryUse(1, 1, None, None, None, None)) is None
    engine.close()


def test_items_in_words() -> None:
    items = {
        "experts": 300 * MB,
        "dense_weights": 500 * MB,
        "kv_cache": 0,
        "buffers": 9 * MB,
        "everything_else": 91 * MB,
    }
    assert describe_items(items) == (
        "experts 300 MB, dense weights 500 MB, buffers 9 MB, "
        "Python, libraries and tokenizer 91 MB; 600 MB without experts"
    )
