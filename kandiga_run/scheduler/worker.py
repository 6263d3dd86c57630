"""The work of the scheduler's thread: prompts in chunks, answers together. Knows no queue.

A step that fails is not always everybody's: a damaged expert is chosen by one of the sequences.
Each of them takes that step again alone, those whose state broke with a new state, and the one that
fails alone has failed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import BatchingEngine, Engine
from kandiga_run.generation.answer import Answer
from kandiga_run.scheduler.events import Failed
from kandiga_run.scheduler.kept_prompts import KeptPrompts
from kandiga_run.scheduler.running import Running
from kandiga_run.scheduler.status import Counters
from kandiga_run.scheduler.ticket import Ticket

_log = logging.getLogger(__name__)

# Of the time a chunk of a prompt took, what those who decode get before the next one.
_DECODE_SHARE = 0.5


class _Unwanted(Exception):
    """Whoever asked has left while the prompt was read."""


class Worker:
    """The sequences that have a place. All calls come from one thread."""

    def __init__(
        self,
        engine: Engine,
        kept: KeptPrompts,
        context_tokens: int,
        chunk_tokens: int,
        counters: Counters,
    ) -> None:
        """chunk_tokens: prompts are read in chunks of so many, counted from their first token.

        The same tokens are always cut in the same places, whatever was kept of them or runs beside
        them: where a sequence is cut changes its results by rounding.
        """
        self._engine, self._kept = engine, kept
        self._context_tokens, self._chunk_tokens = context_tokens, chunk_tokens
        self._counters = counters
        #: replaced, never changed, so that other threads may look at it
        self.running: tuple[Running, ...] = ()
        self._turn = 0
        #: seconds that belong to those who decode
        self._decode_seconds_due = 0.0

    def start(self, ticket: Ticket) -> None:
        """Give a ticket a place, or fail it."""
        try:
            one = self._new_running(ticket)
        except Exception as error:
            self._counters.failed += 1
            ticket.tell(Failed(error))
            return
        self.running = (*self.running, one)

    def step(self) -> None:
        """Read a chunk of one prompt, take every answer that has begun a token further."""
        if self._decode_seconds_due <= 0:
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
        return Running(ticket, answer, num_prompt + limit)

    def _prefill_some(self) -> None:
        """Read the next chunk of one prompt; prompts take turns."""
        one = self._next_prefill()
        if one is None:
            return
        if not one.has_begun and not self._begin(one):
            return
        start = one.position
        chunk = one.prompt[start : (start // self._chunk_tokens + 1) * self._chunk_tokens]
        stats = self._engine.stats
        before, started = stats.snapshot(), perf_counter()

        def look() -> None:
            if one.ticket.is_cancelled:
                raise _Unwanted

        try:
            logits = self._engine.forward(chunk, one.state, between_layers=look)
            self._kept.keep_prompt(one.state, one.ticket.request.prompt_tokens, one.branches)
        except _Unwanted:
            return  # `drop_cancelled` comes next
        except Exception as error:
            self._fail(one, error)
            return
        seconds = perf_counter() - started
        self._decode_seconds_due = seconds * _DECODE_SHARE
        self._counters.prompt_tokens += len(chunk)
        self._counters.prefill_rate.add(len(chunk), seconds)
        stats.prompt_tokens += len(chunk)
        stats.prefill_seconds += seconds
        one.prefilled(len(chunk), seconds, stats.minus(before))
        if one.wants_token:
            self._choose(one, logits[-1])

    def _next_prefill(self) -> Running | None:
        """Return whose turn it is; who would read what another is reading waits for that one."""
        prefilling = [one for one in self.running if one.is_prefilling]
        ready = [
            one
            for index, one in enumerate(prefilling)
            if one.has_begun or not self._waits(one, prefilling[:index])
        ]
        if not ready:
            return None
        self._turn += 1
        return ready[self._turn % len(ready)]

    def _waits(self, one: Running, before: Sequence[Running]) -> bool:
        """Whether one of those before is reading chunks that this one, not begun, wants too."""
        for other in before:
            shared = self._kept.shared_tokens(one.prompt, other.prompt)
            if shared > other.position:
                other.branches.add(shared)
                return True
        return False

    def _decode_all(self) -> None:
        decoding = [one for one in self.running if not one.is_prefilling]
        if not decoding:
            self._decode_seconds_due = 0.0
            return
        can_batch = isinstance(self._engine, BatchingEngine)
        together = [one for one in decoding if can_batch and not one.is_suspect]
        if together:
            self._decode(together)
        for one in decoding:
            if one not in together and one in self.running:
                self._decode([one])

    def _decode(self, together: Sequence[Running]) -> None:
        """Take some sequences one token further, in one call of the engine."""
        stats = self._engine.stats
        before, started = stats.snapshot(), perf_counter()
        try:
            logits = self._forward(together)
        except Exception as error:
            self._find_culprit(together, error)
            return
        seconds = perf_counter() - started
        self._decode_seconds_due -= seconds
        stats.decode_seconds += seconds
        self._counters.decode_rate.add(len(together), seconds)
        counters = stats.minus(before)
        for one, row in zip(together, logits, strict=True):
            one.decoded(seconds, counters)
            if one.wants_token:
                self._choose(one, row)

    def _forward(self, together: Sequence[Running]) -> NDArray[np.float32]:
        """Return the logits (B, vocab) after one more token of each."""
        engine, first = self._engine, together[0]
        if isinstance(engine, BatchingEngine) and len(together) > 1:
            tokens = [one.next_input for one in together]
            return engine.forward_sequences(tokens, [one.state for one in together])
        return engine.forward(np.array([first.next_input], dtype=np.int32), first.state)

    def _find_culprit(self, together: Sequence[Running], error: Exception) -> None:
        """Fail a sequence that was alone; let those of several try again, each alone."""
        engine = self._engine
        if len(together) == 1 or not isinstance(engine, BatchingEngine):
            for one in together:
                self._fail(one, error)
            return
        for one in together:
            one.is_suspect = True
            if not engine.can_go_on(one.state):
                self._begin(one)

    def _begin(self, one: Running) -> bool:
        """Give a sequence a new state, with what is kept of its prompt, or fail it."""
        prompt = one.ticket.request.prompt_tokens
        try:
            one.begin(lambda: self._kept.new_state(prompt, one.max_tokens))
        except Exception as error:
            self._fail(one, error)
            return False
        if not one.answer.token_ids:
            self._counters.cached_tokens += one.position
        return True

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
            self._finish(one)

    def _finish(self, one: Running) -> None:
        self._counters.finished += 1
        self._counters.finished_by_kv[one.state.kv_format or "none"] += 1
        self._counters.durations.append(perf_counter() - one.started)
        self._leave(one)
        try:
            self._kept.keep_turn(one.state, one.seen_tokens)
        except Exception:  # the answer is complete all the same
            _log.exception("an answer was not kept")
        one.finish()

    def _fail(self, one: Running, error: Exception) -> None:
        self._counters.failed += 1
        self._leave(one)
        one.fail(error)

    def _leave(self, one: Running) -> None:
        self.running = tuple(other for other in self.running if other is not one)
