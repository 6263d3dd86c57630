"""Requests through the scheduler: order, bounds, cancelling, closing. Real tiny models."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kandiga_run import GenerateOptions, RunError, generate, load_engine
from kandiga_run.engine import Engine
from kandiga_run.scheduler import (
    Closing,
    Event,
    Failed,
    Finished,
    Prefilled,
    Queued,
    QueueFull,
    Request,
    Scheduler,
    Ticket,
    Token,
)
from packed import PackedModels

CONTEXT = 400


@pytest.fixture(scope="module")
def engine(packed: PackedModels) -> Iterator[Engine]:
    engine = load_engine(packed("qwen3_moe").container, engine="native")
    yield engine
    engine.close()


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine, context_tokens=CONTEXT, max_running=2, max_waiting=3)
    yield scheduler
    scheduler.close()


def request(seed: int, length: int = 20, max_tokens: int = 8, client: str = "") -> Request:
    prompt = np.random.default_rng(seed).integers(1, 300, length).tolist()
    return Request(tuple(prompt), GenerateOptions(max_tokens=max_tokens), client=client)


def alone(engine: Engine, wanted: Request) -> list[int]:
    generation = generate(engine, wanted.prompt_tokens, wanted.options)
    list(generation)
    return generation.token_ids


def tokens_of(events: list[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def test_an_answer_is_the_one_given_alone(engine: Engine, scheduler: Scheduler) -> None:
    wanted = request(1, length=30)
    events = list(scheduler.submit(wanted))
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason == "length"
    assert (end.usage.prompt_tokens, end.usage.generated_tokens) == (30, 8)
    assert end.stats.decode_steps == 7
    assert end.stats.time_to_first_token_seconds >= end.stats.prefill_seconds > 0
    progress = [(event.done, event.total) for event in events if isinstance(event, Prefilled)]
    assert progress == [(0, 30), (30, 30)]
    scheduler.close()
    assert tokens_of(events) == alone(engine, wanted)


def test_all_readers_see_all_events(scheduler: Scheduler) -> None:
    ticket = scheduler.submit(request(2))
    seen: list[list[Event]] = []
    readers = [threading.Thread(target=lambda: seen.append(list(ticket))) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert seen[0] == seen[1] == seen[2] == list(ticket)


def test_an_event_loop_reads_many_tickets(scheduler: Scheduler) -> None:
    async def read(ticket: Ticket) -> list[Event]:
        return [event async for event in ticket.events()]

    async def read_all() -> list[list[Event]]:
        return await asyncio.gather(*(read(scheduler.submit(request(i))) for i in range(4)))

    for events in asyncio.run(read_all()):
        assert isinstance(events[-1], Finished)
        assert len(tokens_of(events)) == 8


def test_a_closed_event_loop_does_not_disturb(scheduler: Scheduler) -> None:
    ticket = scheduler.submit(request(3, max_tokens=300))

    async def read_one() -> None:
        async for event in ticket.events():
            if isinstance(event, Token):
                return

    asyncio.run(read_one())
    assert isinstance(list(ticket)[-1], Finished)


def test_past_the_bound_requests_are_refused(scheduler: Scheduler) -> None:
    tickets = [scheduler.submit(request(i, max_tokens=300)) for i in range(5)]
    with pytest.raises(QueueFull, match="3 requests are waiting already") as refusal:
        scheduler.submit(request(9))
    assert refusal.value.retry_after_seconds >= 1
    assert scheduler.status().refused == 1
    for ticket in tickets:
        ticket.cancel()


def test_places_in_the_queue_are_told(scheduler: Scheduler) -> None:
    tickets = [scheduler.submit(request(i, max_tokens=40)) for i in range(5)]
    events = list(tickets[-1])
    places = [event.position for event in events if isinstance(event, Queued)]
    assert places == sorted(places, reverse=True)
    assert places[-1] == 1
    assert isinstance(events[-1], Finished)


def test_a_busy_client_does_not_keep_others_waiting(engine: Engine) -> None:
    scheduler = Scheduler(engine, context_tokens=CONTEXT, max_running=1, max_waiting=20)
    ended: list[str] = []

    def follow(name: str, ticket: Ticket) -> threading.Thread:
        def run() -> None:
            for _ in ticket:
                pass
            ended.append(name)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    first = scheduler.submit(request(0, max_tokens=300, client="first"))
    threads = [
        follow(f"busy {i}", scheduler.submit(request(i, max_tokens=30, client="busy")))
        for i in range(5)
    ]
    threads.append(follow("other", scheduler.submit(request(7, max_tokens=30, client="other"))))
    first.cancel()
    for thread in threads:
        thread.join()
    scheduler.close()
    assert ended.index("other") <= 1


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
def test_cancelling_ends_a_prompt_within_a_layer(packed: PackedModels, family: str) -> None:
    """The chunk that is being read is given up, and the next request is answered as ever."""
    engine = load_engine(packed(family).container, engine="native")
    forward, layers = engine.forward, 0
    scheduler = Scheduler(engine, context_tokens=CONTEXT)
    wanted = request(4, length=200, max_tokens=5)
    ticket = None

    def forward_and_cancel(*arguments: object, between_layers: Callable[[], None]) -> object:
        def look() -> None:
            nonlocal layers
            layers += 1
            if layers == 2:
                while ticket is None:  # the thread may be here before `submit` has returned
                    time.sleep(0.001)
                ticket.cancel()
            between_layers()

        return forward(*arguments, between_layers=look)

    engine.forward = forward_and_cancel
    ticket = scheduler.submit(wanted)
    end = list(ticket)[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason == "cancelled"
    assert layers == 2
    status = scheduler.status()
    assert (status.running, status.cancelled, status.failed) == (0, 1, 0)
    engine.forward = forward
    answered = tokens_of(list(scheduler.submit(wanted)))
    scheduler.close()
    assert answered == alone(engine, wanted)
    engine.close()


def test_cancelling_ends_the_answer_within_a_token(scheduler: Scheduler) -> None:
    ticket = scheduler.submit(request(4, max_tokens=300))
    count = 0
    for event in ticket:
        if isinstance(event, Token):
            count += 1
            if count == 3:
                ticket.cancel()
                seen_at_cancel = len(tokens_of(ticket.so_far))
    end = ticket.so_far[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason == "cancelled"
    assert end.usage.generated_tokens == count <= seen_at_cancel + 1
    assert scheduler.status().cancelled == 1


def test_a_waiting_request_can_be_cancelled(scheduler: Scheduler) -> None:
    running = [scheduler.submit(request(i, max_tokens=300)) for i in range(2)]
    waiting = scheduler.submit(request(5))
    waiting.cancel()
    end = list(waiting)[-1]
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.generated_tokens) == ("cancelled", 0)
    for ticket in running:
        ticket.cancel()


def test_what_cannot_work_is_refused_at_once(scheduler: Scheduler) -> None:
    with pytest.raises(RunError, match="the prompt is empty"):
        scheduler.submit(Request(()))
    with pytest.raises(RunError, match="the prompt has 400 tokens and the context 400"):
        scheduler.submit(request(1, length=CONTEXT))
    with pytest.raises(RunError, match="outside of the vocabulary of 320"):
        scheduler.submit(Request((1, 320)))


def test_closing_lets_answers_end(engine: Engine) -> None:
    scheduler = Scheduler(engine, context_tokens=CONTEXT)
    tickets = [scheduler.submit(request(i, max_tokens=20)) for i in range(6)]
    scheduler.close(drain_seconds=None)
    assert [len(tokens_of(list(ticket))) for ticket in tickets] == [20] * 6
    with pytest.raises(Closing):
        scheduler.submit(request(1))


def test_closing_without_patience_cancels(engine: Engine) -> None:
    scheduler = Scheduler(engine, context_tokens=CONTEXT, max_running=1)
    tickets = [scheduler.submit(request(i, max_tokens=300)) for i in range(3)]
    scheduler.close()
    for ticket in tickets:
        end = list(ticket)[-1]
        assert isinstance(end, Finished)
        assert end.finish_reason == "cancelled"


def test_a_failing_answer_leaves_the_others_alone(engine: Engine, scheduler: Scheduler) -> None:
    class NothingAllowed:
        is_complete = in_reasoning = False

        def mask(self) -> np.ndarray:
            return np.zeros(10, np.uint32)

        def accept(self, token: int) -> None:
            raise AssertionError(token)

    good = request(6, max_tokens=30)
    bad = Request(good.prompt_tokens, good.options, constraint=NothingAllowed())
    good_ticket, bad_ticket = scheduler.submit(good), scheduler.submit(bad)
    failure = list(bad_ticket)[-1]
    assert isinstance(failure, Failed)
    assert "no token is allowed" in str(failure.error)
    answered = tokens_of(list(good_ticket))
    scheduler.close()
    assert answered == alone(engine, good)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_running": 0}, "max_running is 0, wanted at least 1"),
        ({"max_waiting": -1}, "max_waiting is -1, wanted at least 0"),
        ({"context_tokens": 0}, "context_tokens is 0, wanted at least 1"),
    ],
)
def test_impossible_settings(engine: Engine, options: dict, message: str) -> None:
    with pytest.raises(RunError, match=message):
        Scheduler(engine, **{"context_tokens": CONTEXT, **options})
