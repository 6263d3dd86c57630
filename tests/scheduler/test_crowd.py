"""Many clients at once: no crossed answers, each the one given alone, nothing left behind."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from kandiga_run import GenerateOptions, SamplingOptions, load_engine
from kandiga_run.scheduler import (
    CacheOptions,
    Event,
    Finished,
    QueueFull,
    Request,
    Scheduler,
    Token,
)
from packed import PackedModels

CONTEXT = 500
NUM_CLIENTS = 6
REQUESTS_A_CLIENT = 7


def make_request(number: int, client: str) -> Request:
    """Return one of several shared beginnings with an end of its own."""
    rng = np.random.default_rng(number)
    system = np.random.default_rng(number % 3).integers(1, 300, 30 * (number % 3)).tolist()
    own = rng.integers(1, 300, 1 + number * 7 % 90).tolist()
    temperature = 0.9 if number % 4 == 3 else 0.0
    sampling = SamplingOptions(temperature=temperature, seed=number)
    options = GenerateOptions(max_tokens=3 + number % 17, sampling=sampling)
    return Request((*system, *own), options, client=client)


def follow(scheduler: Scheduler, request: Request, cancel_after: int | None) -> list[Event]:
    """Ask, as often as the queue is full, and read; give up after so many tokens."""
    while True:
        try:
            ticket = scheduler.submit(request)
            break
        except QueueFull:
            threading.Event().wait(0.01)
    events = []
    for event in ticket:
        events.append(event)
        if cancel_after is not None and sum(isinstance(e, Token) for e in events) >= cancel_after:
            ticket.cancel()
    return events


def ids_of(events: list[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_5_moe"])
def test_each_gets_its_own_answer(packed: PackedModels, tmp_path: Path, family: str) -> None:
    numbers = range(NUM_CLIENTS * REQUESTS_A_CLIENT)
    engine = load_engine(packed(family).container, engine="native")
    nothing = CacheOptions(capacity_bytes=0)
    quiet = Scheduler(
        engine, context_tokens=CONTEXT, max_running=1, prefix_cache=nothing, prefill_chunk=32
    )
    alone = {n: ids_of(follow(quiet, make_request(n, ""), None)) for n in numbers}
    quiet.close()

    options = CacheOptions(capacity_bytes=1 << 20, folder=tmp_path)
    scheduler = Scheduler(
        engine,
        context_tokens=CONTEXT,
        max_running=4,
        max_waiting=3,
        prefix_cache=options,
        prefill_chunk=32,
    )
    answers: dict[int, list[Event]] = {}

    def client(index: int) -> None:
        rng = random.Random(index)
        for number in list(numbers)[index::NUM_CLIENTS]:
            cancel_after = rng.choice([None, None, 0, 2])
            request = make_request(number, str(index))
            answers[number] = follow(scheduler, request, cancel_after)

    clients = [threading.Thread(target=client, args=(i,)) for i in range(NUM_CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    status = scheduler.status()
    assert (status.running, status.waiting, status.failed) == (0, 0, 0)
    assert status.finished + status.cancelled == len(numbers)
    for number, events in answers.items():
        end, ids = events[-1], ids_of(events)
        assert isinstance(end, Finished)
        assert end.usage.generated_tokens == len(ids)
        if end.finish_reason == "cancelled":
            assert ids == alone[number][: len(ids)]
        else:
            assert ids == alone[number]
    states = weakref.WeakSet(engine._states)
    scheduler.close()
    del events
    answers.clear()
    gc.collect()
    assert len(states) == 0
    assert "kandiga-scheduler" not in {thread.name for thread in threading.enumerate()}
    assert "kandiga-prompts" not in {thread.name for thread in threading.enumerate()}
    engine.close()
