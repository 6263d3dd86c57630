"""A memory budget and the answers computed at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kandiga_run import GenerateOptions, RunError, load_engine
from kandiga_run.engine import Engine
from kandiga_run.native.engine import NativeEngine
from kandiga_run.scheduler import CacheOptions, Finished, Request, Scheduler
from packed import PackedModels

CONTEXT = 400_000

MIB = 1 << 20
NOTHING = CacheOptions(capacity_bytes=0)


@pytest.fixture
def engine(packed: PackedModels) -> Iterator[Engine]:
    """Return an engine whose budget has room for one and a half full contexts."""
    container = packed("qwen3_moe").container
    with pytest.raises(RunError, match="the smallest that works is") as refusal:
        load_engine(container, engine="native", memory_bytes=MIB)
    least = int(str(refusal.value).rpartition(" is ")[2].removesuffix("MiB")) * MIB
    roomy = load_engine(container, engine="native", kv="fp16")
    state_bytes = roomy.token_work(CONTEXT).state_bytes
    roomy.close()
    budget_bytes = least + state_bytes * 3 // 2 + 8 * MIB
    engine = load_engine(container, engine="native", memory_bytes=budget_bytes, kv="fp16")
    yield engine
    engine.close()


def test_as_many_answers_as_fit(engine: Engine) -> None:
    scheduler = Scheduler(engine, context_tokens=CONTEXT, prefix_cache=NOTHING)
    assert scheduler.max_running == 1
    scheduler.close()
    scheduler = Scheduler(engine, context_tokens=CONTEXT // 8, prefix_cache=NOTHING)
    assert scheduler.max_running == 4
    prompt = tuple(np.random.default_rng(1).integers(1, 300, 700).tolist())
    options = GenerateOptions(max_tokens=4)
    tickets = [scheduler.submit(Request(prompt, options)) for _ in range(6)]
    ends = [list(ticket)[-1] for ticket in tickets]
    scheduler.close()
    assert all(isinstance(end, Finished) for end in ends)


def test_more_than_fit_are_refused(engine: Engine) -> None:
    with pytest.raises(RunError, match="no room for 3 answers of 400000 tokens: a memory"):
        Scheduler(engine, context_tokens=CONTEXT, max_running=3, prefix_cache=NOTHING)


def test_kept_prompts_count(engine: Engine) -> None:
    options = CacheOptions(capacity_bytes=1 << 40)
    with pytest.raises(RunError, match="a memory budget"):
        Scheduler(engine, context_tokens=CONTEXT, prefix_cache=options)


def test_chunks_are_not_cut_further_when_less_is_free(engine: Engine) -> None:
    assert isinstance(engine, NativeEngine)
    chunk = engine.reserve(0, 1, CONTEXT)
    plan = engine._plan
    states = [engine.new_state(CONTEXT // 4) for _ in range(3)]
    with plan.chunk_rows(chunk) as rows:
        assert rows == chunk
    del states


@pytest.mark.parametrize("options", [{"capacity_bytes": -1}, {"folder_bytes": -1}])
def test_impossible_options(options: dict) -> None:
    with pytest.raises(RunError, match="wanted 0 or more"):
        CacheOptions(**options)
