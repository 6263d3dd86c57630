"""A request whose answer is being made: what was read of its prompt, and what it says so far."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import State
from kandiga_run.engine.stats import RunStats
from kandiga_run.generation.answer import Answer
from kandiga_run.generation.loop import GenerationStats
from kandiga_run.generation.usage import Usage
from kandiga_run.scheduler.events import Failed, Finished, Prefilled
from kandiga_run.scheduler.ticket import Ticket


class Running:
    """One sequence that has a place.

    Its state is behind what was chosen by one token or, after a failure that broke it, by more: a
    new state then reads the prompt and the tokens chosen so far again.
    """

    def __init__(self, ticket: Ticket, answer: Answer, max_tokens: int) -> None:
        """max_tokens: what its state must have room for. There is none before `begin`."""
        self.ticket, self.answer, self.max_tokens = ticket, answer, max_tokens
        self.prompt = np.asarray(ticket.request.prompt_tokens, dtype=np.int32)
        self.stats = GenerationStats()
        self.started = perf_counter()
        #: numbers of tokens after which other prompts go on otherwise
        self.branches: set[int] = set()
        #: Whether a step together with others failed: it takes the next one alone.
        self.is_suspect = False
        self._state: State | None = None

    def begin(self, new_state: Callable[[], tuple[State, int]]) -> None:
        """Take a state, and drop a former one first: both may not fit into memory.

        new_state: `KeptPrompts.new_state`. What it knows of the prompt was not read for this answer
        if nothing has been chosen yet.
        """
        self._state = None
        self._state, known_tokens = new_state()
        self.branches.add(known_tokens)
        if not self.answer.token_ids:
            self.stats.reused_tokens = self.position
            self.ticket.tell(Prefilled(self.position, len(self.prompt)))

    @property
    def has_begun(self) -> bool:
        """Whether it has a state."""
        return self._state is not None

    @property
    def state(self) -> State:
        """Return the state; ValueError when there is none."""
        if self._state is None:
            raise ValueError("this sequence has not begun")
        return self._state

    @property
    def position(self) -> int:
        """Return how many tokens the state has seen."""
        state = self._state
        return state.position if state else 0

    @property
    def state_bytes(self) -> int:
        """Return the size of the state. Any thread may ask."""
        state = self._state
        return state.nbytes if state else 0

    @property
    def is_prefilling(self) -> bool:
        """Whether a part of the prompt has not been read."""
        return self.position < len(self.prompt)

    @property
    def next_input(self) -> int:
        """Return the token to compute next: the last one chosen, or one to be read again."""
        return self.answer.token_ids[self.position - len(self.prompt)]

    @property
    def wants_token(self) -> bool:
        """Whether the state has seen all there is, so that the next token can be chosen."""
        return self.position == len(self.prompt) + len(self.answer.token_ids)

    @property
    def seen_tokens(self) -> list[int]:
        """Return the tokens the state has seen."""
        return [*self.prompt.tolist(), *self.answer.token_ids][: self.position]

    def prefilled(self, count: int, seconds: float, counters: RunStats) -> None:
        """Note that `count` more tokens of the prompt have been read."""
        self.stats.prefill_seconds += seconds
        self.stats.prefill = self.stats.prefill.plus(counters)
        if not self.answer.token_ids:
            self.stats.prompt_tokens += count
            self.ticket.tell(Prefilled(self.position, len(self.prompt)))

    def decoded(self, seconds: float, counters: RunStats) -> None:
        """Note a step of one token."""
        self.stats.decode_seconds += seconds
        self.stats.decode = self.stats.decode.plus(counters)

    def choose(self, logits: NDArray[np.float32]) -> bool:
        """Choose the next token given logits (vocab,) and tell it; return whether it is the last.

        Raises RunError when there is no token to choose.
        """
        token = self.answer.add(logits)
        self.is_suspect = False
        self.stats.generated_tokens += 1
        if self.stats.generated_tokens == 1:
            self.stats.time_to_first_token_seconds = perf_counter() - self.started
        self.ticket.tell(token)
        return self.answer.finish_reason is not None

    def finish(self, reason: Literal["cancelled"] | None = None) -> None:
        """Tell the end: the answer's own reason, or the one given."""
        ended = reason or self.answer.finish_reason
        if ended is None:
            raise ValueError("the answer has not ended")
        usage = Usage(len(self.prompt), self.stats.reused_tokens, self.stats.generated_tokens)
        self.ticket.tell(Finished(ended, usage, self.stats))

    def fail(self, error: Exception) -> None:
        """Tell that the answer could not be computed."""
        self.ticket.tell(Failed(error))
