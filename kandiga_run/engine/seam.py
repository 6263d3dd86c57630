"""The seam between computing a model and using it: tokens in, logits out.

Generation, server and bench see `Engine` only. They do not know which engine, which expert
residency or which KV cache is underneath.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine.stats import RunStats

if TYPE_CHECKING:
    from kandiga_run.kv.prompt_cache import StateIdentity
    from kandiga_run.kv.snapshot import StatePiece

#: Tokens of a prefill chunk, unless an engine gains from longer ones.
PREFILL_CHUNK = 512


class State(Protocol):
    """One sequence: its KV cache and recurrent state. Belongs to the engine that made it."""

    @property
    def position(self) -> int:
        """Return the number of tokens this state has seen."""

    @property
    def max_tokens(self) -> int:
        """Return the number of tokens this state has room for."""

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays really held."""

    @property
    def recurrent_nbytes(self) -> int:
        """Return which part of that is recurrent state, not keys and values."""

    @property
    def kv_format(self) -> str:
        """Return how keys and values are held, such as "f16"."""

    @property
    def can_trim(self) -> bool:
        """Whether past tokens can be taken out again; recurrent layers forget nothing."""

    def trim(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens. Raises RunError when the state cannot."""


class StateMark(Protocol):
    """A moment of a sequence that its state can go back to."""

    @property
    def position(self) -> int:
        """Return the number of tokens seen then."""

    @property
    def nbytes(self) -> int:
        """Return the size of what is kept for it."""


@runtime_checkable
class RewindableState(State, Protocol):
    """A state that goes back to marks, also where it cannot trim.

    Keys and values of earlier tokens stay in the state; a mark keeps recurrent layers alone.
    """

    @property
    def can_mark(self) -> bool:
        """Whether it does: caches that overwrite their oldest tokens go back nowhere."""

    @property
    def is_broken(self) -> bool:
        """Whether a call was given up where only going back to a mark makes it whole."""

    def mark(self) -> StateMark:
        """Return this moment."""

    def rewind(self, mark: StateMark) -> None:
        """Go back to a mark of this state, to which no trim has gone back further since."""


class Engine(Protocol):
    """Computes one model. Not thread-safe: one `forward` at a time."""

    name: str
    vocab_size: int
    stats: RunStats
    #: tokens of a prompt that are best given to `forward` at once
    prefill_chunk: int

    def new_state(self, max_tokens: int) -> State:
        """Return an empty state with room for `max_tokens` tokens."""

    def forward(
        self,
        tokens: NDArray[np.int32],
        state: State,
        *,
        logits: Literal["all", "last"] = "last",
        between_layers: Callable[[], None] | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens (T,) to the state; return logits (T, vocab_size), or (1, vocab_size).

        More than one token is a prefill chunk. The caller owns the result. Raises RunError when
        the state has no room, when a token is outside the vocabulary or when `tokens` is empty.

        between_layers: called between layers, or at least between chunks; what it raises gives the
            call up at once. The state stays as it was, or is broken (`RewindableState`).
        """

    def close(self) -> None:
        """Release threads, memory and files. Closing twice is harmless."""


@runtime_checkable
class SavingEngine(Protocol):
    """An engine whose states can be kept in files."""

    def save_state(self, state: State, tokens: Sequence[int], path: Path) -> None:
        """Write a state, which has seen `tokens`. Raises RunError."""

    def load_state(self, path: Path, max_tokens: int) -> tuple[State, list[int]]:
        """Return a saved state and the tokens it has seen. Raises RunError when it does not fit."""


@runtime_checkable
class BatchingEngine(Protocol):
    """An engine that takes several sequences one token further at once."""

    def forward_sequences(
        self, tokens: Sequence[int], states: Sequence[State]
    ) -> NDArray[np.float32]:
        """Append token b to state b, all states different; return logits (B, vocab_size).

        Each row is, bit for bit, what `forward` would have given for that sequence alone. After a
        failure no state is further than before, but some may be lost: see `can_go_on`.
        """

    def can_go_on(self, state: State) -> bool:
        """Whether a state is whole: it has not been lost in a call that failed."""


@runtime_checkable
class ResumingEngine(Protocol):
    """An engine whose states can be copied and put together again, as beginnings of prompts are."""

    @property
    def state_identity(self) -> StateIdentity:
        """Return what pieces must agree in, besides their tokens, to give the same bits."""

    def take_piece(self, state: State, begin: int, *, can_be_last: bool = True) -> StatePiece:
        """Copy what a state holds of its tokens from `begin` on.

        can_be_last: also copy what only helps whoever goes on from here, as recurrent state.
        """

    def new_state_from(self, pieces: Sequence[StatePiece], max_tokens: int) -> State:
        """Return a state that has seen the tokens of all pieces, which follow each other from 0 on.

        Raises RunError when they do not fit this engine, or memory has no room for the state.
        """


@runtime_checkable
class BudgetedEngine(Protocol):
    """An engine that may have a memory budget, which others' memory must fit into as well."""

    @property
    def budget_bytes(self) -> int | None:
        """Return the budget, None when there is none."""

    def reserve(self, nbytes: int, num_states: int, max_tokens: int) -> int:
        """Keep memory for the caller's own `nbytes` and for so many full states at once.

        Returns how many tokens a prefill chunk may then have. Raises RunError when the budget has
        no room, with the smallest that works.
        """
