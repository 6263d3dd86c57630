"""The work of the scheduler's thread: prompts in chunks, answers together. Knows no queue."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from kandiga_run.answer import Answer
from kandiga_run.engine import Engine
from kandiga_run.scheduler.batching import forward_sequences
from kandiga_run.scheduler.events import Failed
from kandiga_run.scheduler.running import Running
from kandiga_run.scheduler.status import Counters
from kandiga_run.scheduler.ticket import Ticket


class Worker:
    """The sequences that have a place. All calls come from one thread."""

    def __init__(self, engine: Engine, context_tokens: int, counters: Counters) -> None:
        self._engine = engine
        self._context_tokens = context_tokens
        self._counters = counters
        #: replaced, never changed, so that other threads may look at it
        self.running: tuple[Running, ...] = ()
        self._turn = 0

    def start(self, ticket: Ticket) -> None:
        """Give a ticket a place, or fail it."""
        try:
            self.running = (*self.running, self._new_running(ticket))
        except Exception as error:
            self._counters.failed += 1
            ticket.tell(Failed(error))

    def step(self) -> None:
        """Read a chunk of one prompt, take every answer that has begun a token further."""
        self.drop_cancelled()
        self._prefill_some()
        self.drop_cancelled()
        self._decode_all()

    def drop_cancelled(self) -> None:
        """End the answers nobody wants any more."""
        for one in self.running:
            if one.ticket.is_cancelled:
                self._counters.cancelled += 1
                self._leave(one)
                one.finish("cancelled")

    def _new_running(self, ticket: Ticket) -> Running:
        request = ticket.request
        num_prompt = len(request.prompt_tokens)
        limit = request.options.answer_limit(num_prompt, self._context_tokens)
        answer = Answer(
            request.options,
            request.prompt_tokens,
            detokenizer=request.detokenizer,
            limit=limit,
            mask=request.constraint,
        )
        return Running(ticket, answer, self._engine.new_state(num_prompt + limit), 0)

    def _prefill_some(self) -> None:
        """Read the next chunk of one prompt; prompts take turns."""
        prefilling = [one for one in self.running if one.is_prefilling]
        if not prefilling:
            return
        self._turn += 1
        one = prefilling[self._turn % len(prefilling)]
        chunk = one.prompt[one.done : one.done + self._engine.prefill_chunk]
        stats = self._engine.stats
        before, started = stats.snapshot(), perf_counter()
        try:
            logits = self._engine.forward(chunk, one.state)
        except Exception as error:
            self._fail(one, error)
            return
        seconds = perf_counter() - started
        self._counters.prompt_tokens += len(chunk)
        self._counters.prefill_rate.add(len(chunk), seconds)
        stats.prompt_tokens += len(chunk)
        stats.prefill_seconds += seconds
        one.prefilled(len(chunk), seconds, stats.minus(before))
        if not one.is_prefilling:
            self._choose(one, logits[-1])

    def _decode_all(self) -> None:
        decoding = [one for one in self.running if not one.is_prefilling]
        if not decoding:
            return
        stats = self._engine.stats
        before, started = stats.snapshot(), perf_counter()
        tokens, states = [one.next_input for one in decoding], [one.state for one in decoding]
        try:
            logits = forward_sequences(self._engine, tokens, states)
        except Exception as error:
            for one in decoding:
                self._fail(one, error)
            return
        seconds = perf_counter() - started
        stats.decode_seconds += seconds
        self._counters.decode_rate.add(len(decoding), seconds)
        counters = stats.minus(before)
        for one, row in zip(decoding, logits, strict=True):
            one.decoded(seconds, counters)
            self._choose(one, row)

    def _choose(self, one: Running, logits: NDArray[np.float32]) -> None:
        """Choose the next token of a sequence, which may be its last."""
        started = perf_counter()
        try:
            is_last = one.choose(logits)
        except Exception as error:
            self._fail(one, error)
            return
        finally:
            self._engine.stats.sampling_seconds += perf_counter() - started
        self._engine.stats.generated_tokens += 1
        self._counters.generated_tokens += 1
        if is_last:
            self._counters.finished += 1
            self._counters.durations.append(perf_counter() - one.started)
            self._leave(one)
            one.finish()

    def _fail(self, one: Running, error: Exception) -> None:
        self._counters.failed += 1
        self._leave(one)
        one.fail(error)

    def _leave(self, one: Running) -> None:
        self.running = tuple(other for other in self.running if other is not one)
