"""One engine, many requests: a thread that reads prompts in chunks and decodes answers together.

    scheduler = Scheduler(engine, context_tokens=32768)
    ticket = scheduler.submit(Request(prompt_tokens, options, detokenizer))
    for event in ticket: ...                 # or: async for event in ticket.events()
    scheduler.close()

A round of the thread: requests that wait take free places; the next chunk of one prompt is read;
every answer that has begun goes one token further, all in one call of the engine.
"""

from __future__ import annotations

import math
import threading
from time import perf_counter

from kandiga_run.engine import Engine
from kandiga_run.errors import RunError
from kandiga_run.generation.loop import GenerationStats
from kandiga_run.generation.usage import Usage
from kandiga_run.scheduler.events import Finished, Queued
from kandiga_run.scheduler.kept_prompts import CacheOptions, KeptPrompts
from kandiga_run.scheduler.memory_fit import fit_memory
from kandiga_run.scheduler.request import Closing, QueueFull, Request
from kandiga_run.scheduler.status import Counters, Status
from kandiga_run.scheduler.ticket import Ticket
from kandiga_run.scheduler.waiting import WaitingTickets
from kandiga_run.scheduler.worker import Worker

MAX_WAITING = 64


class Scheduler:
    """Owns the use of an engine from its construction to `close`, which leaves the engine open."""

    def __init__(
        self,
        engine: Engine,
        *,
        context_tokens: int,
        max_running: int | None = None,
        max_waiting: int = MAX_WAITING,
        prefix_cache: CacheOptions | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        """Start the thread. `context_tokens` bounds prompt and answer of every request together.

        max_running: answers computed at the same time; None: 4, or as many as a memory budget has
            room for.
        max_waiting: requests that may wait beside them.
        prefix_cache: how beginnings of prompts are kept.
        prefill_chunk: tokens of a prompt read at once; only whole chunks are kept. None: 512, or
            1024 where experts are read from disk.

        RunError for a number that cannot work, or a budget without room for so many full contexts.
        """
        for name, value, least in (
            ("context_tokens", context_tokens, 1),
            ("max_running", 1 if max_running is None else max_running, 1),
            ("max_waiting", max_waiting, 0),
            ("prefill_chunk", 1 if prefill_chunk is None else prefill_chunk, 1),
        ):
            if value < least:
                raise RunError(f"{name} is {value}, wanted at least {least}")
        self.engine = engine
        self.context_tokens = context_tokens
        self.max_waiting = max_waiting
        cache_options = prefix_cache or CacheOptions()
        self.max_running, chunk_tokens = fit_memory(
            engine, cache_options, context_tokens, max_running, prefill_chunk
        )
        self._counters = Counters()
        self._kept = KeptPrompts(engine, cache_options, chunk_tokens)
        self._worker = Worker(engine, self._kept, context_tokens, chunk_tokens, self._counters)
        self._changed = threading.Condition()
        self._waiting = WaitingTickets()
        self._num_starting = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="kandiga-scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Queue a request. Returns at once.

        Raises QueueFull past `max_waiting`, Closing after `close`, RunError for a prompt that is
        empty, too long for the context, or holds a token outside the vocabulary.
        """
        self._check(request)
        ticket = Ticket(request)
        with self._changed:
            if self._is_closing:
                raise Closing
            accepted = len(self._waiting) + self._num_starting + len(self._worker.running)
            if accepted >= self.max_running + self.max_waiting:
                self._counters.refused += 1
                raise QueueFull(self.max_waiting, self._seconds_to_a_free_place())
            self._counters.submitted += 1
            self._waiting.add(ticket)
            self._tell_places()
            self._changed.notify_all()
        return ticket

    def status(self) -> Status:
        """Return the figures of this moment."""
        counters, running, cache = self._counters, self._worker.running, self._kept.cache
        return Status(
            running=len(running),
            waiting=len(self._waiting),
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            context_tokens=self.context_tokens,
            submitted=counters.submitted,
            finished=counters.finished,
            cancelled=counters.cancelled,
            failed=counters.failed,
            refused=counters.refused,
            finished_by_kv=dict(counters.finished_by_kv),
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            prefill_tokens_per_second=counters.prefill_rate.per_second,
            decode_tokens_per_second=counters.decode_rate.per_second,
            state_bytes=sum(one.state_bytes for one in running),
            cache_entries=cache.entries if cache else 0,
            cache_bytes=cache.nbytes if cache else 0,
            cache_capacity_bytes=cache.capacity_bytes if cache else 0,
            cache_hits=cache.hits if cache else 0,
            cache_misses=cache.misses if cache else 0,
        )

    def close(self, drain_seconds: float | None = 0.0) -> None:
        """Take no more requests, let those accepted go on for so long (None: to their end).

        What is left then is cancelled. Closing twice is harmless.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(drain_seconds)
        if self._thread.is_alive():
            with self._changed:
                running = (one.ticket for one in self._worker.running)
                for ticket in (*self._waiting, *running):
                    ticket.cancel()
            self._thread.join()
        self._kept.close()

    def _check(self, request: Request) -> None:
        prompt, vocab_size = request.prompt_tokens, self.engine.vocab_size
        if not prompt:
            raise RunError("the prompt is empty: there is nothing to continue")
        request.options.answer_limit(len(prompt), self.context_tokens)
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise RunError(f"the prompt has a token outside of the vocabulary of {vocab_size}")

    def _seconds_to_a_free_place(self) -> int:
        """Guess when one of the running answers ends, from how long answers took so far."""
        now = perf_counter()
        seen = list(self._counters.durations) or [now - one.started for one in self._worker.running]
        mean = sum(seen) / len(seen) if seen else 1.0
        return max(1, math.ceil(mean / self.max_running))

    def _tell_places(self) -> None:
        for place, ticket in enumerate(self._waiting, 1):
            ticket.tell(Queued(place))

    def _run(self) -> None:
        while self._wait_for_work():
            self._drop_cancelled()
            self._admit()
            self._worker.step()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False when there will be nothing any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._worker.running or self._is_closing
            )
            return bool(self._waiting or self._worker.running)

    def _drop_cancelled(self) -> None:
        with self._changed:
            gone = [ticket for ticket in self._waiting if ticket.is_cancelled]
            for ticket in gone:
                self._waiting.remove(ticket)
                self._counters.cancelled += 1
                usage = Usage(len(ticket.request.prompt_tokens), 0, 0)
                ticket.tell(Finished("cancelled", usage, GenerationStats()))
            if gone:
                self._tell_places()

    def _admit(self) -> None:
        while len(self._worker.running) < self.max_running:
            with self._changed:
                if not self._waiting:
                    return
                ticket = self._waiting.take_first()
                self._num_starting = 1
                self._tell_places()
            self._worker.start(ticket)
            self._num_starting = 0
