"""Between the scheduler's worker and the prefix cache: what to use of a prompt, what to keep."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import BudgetedEngine, Engine, ResumingEngine, State
from kandiga_run.errors import RunError
from kandiga_run.scheduler.disk_pieces import DiskPieces
from kandiga_run.scheduler.prefix_cache import Match, PrefixCache

_log = logging.getLogger(__name__)

_CAPACITY_BYTES = 1 << 30
# Of a memory budget, which keeps experts from being read again: they gain more from it.
_BUDGET_SHARE = 1 / 16
# Of the capacity, what may wait to be written to disk; it is kept as well, or was.
_PENDING_SHARE = 2


@dataclass(frozen=True)
class CacheOptions:
    """How beginnings of prompts are kept."""

    #: In memory; None: 1 GiB, or a sixteenth of a memory budget. 0 keeps nothing.
    capacity_bytes: int | None = None
    #: Keep them here too, from run to run.
    folder: Path | None = None
    folder_bytes: int = 8 << 30
    #: Also keep the end of each prompt and its answer: a next turn reads only what is new, and its
    #: answer may differ by rounding from the one to the same prompt read from the start.
    whole_turns: bool = False

    def __post_init__(self) -> None:
        """Raise RunError for values that cannot work."""
        if (self.capacity_bytes or 0) < 0 or self.folder_bytes < 0:
            raise RunError("a prefix cache of less than 0 bytes: wanted 0 or more")

    def memory_for(self, engine: Engine) -> int:
        """Return how much memory this takes at most, beside an engine."""
        capacity_bytes = self.capacity_for(engine)
        pending_bytes = capacity_bytes // _PENDING_SHARE if self.folder else 0
        return capacity_bytes + pending_bytes

    def capacity_for(self, engine: Engine) -> int:
        """Return how many bytes to keep in memory, waiting writes not counted."""
        if not isinstance(engine, ResumingEngine):
            return 0
        if self.capacity_bytes is not None:
            return self.capacity_bytes
        budget = engine.budget_bytes if isinstance(engine, BudgetedEngine) else None
        return _CAPACITY_BYTES if budget is None else int(budget * _BUDGET_SHARE)


class KeptPrompts:
    """Finds the kept beginning of a prompt, and keeps what was read."""

    def __init__(self, engine: Engine, options: CacheOptions, chunk_tokens: int) -> None:
        """chunk_tokens: prompts are read in chunks of so many, the last one shorter."""
        self._engine = engine
        self._chunk_tokens = chunk_tokens
        self._whole_turns = options.whole_turns
        self.cache: PrefixCache | None = None
        capacity_bytes = options.capacity_for(engine)
        if capacity_bytes and isinstance(engine, ResumingEngine):
            disk = None
            if options.folder is not None:
                disk = DiskPieces(
                    options.folder,
                    options.folder_bytes,
                    engine.state_identity,
                    chunk_tokens=chunk_tokens,
                    pending_bytes=capacity_bytes // _PENDING_SHARE,
                )
            self.cache = PrefixCache(capacity_bytes, disk=disk)

    def new_state(self, prompt: Sequence[int], max_tokens: int) -> tuple[State, int]:
        """Return a state for a prompt, and so many tokens of it that was read already known.

        The state has seen `state.position` tokens; the number given may be larger: from there on
        the prompt departs from others, and it is worth to keep where.
        """
        if self.cache is not None and isinstance(self._engine, ResumingEngine):
            match = self.cache.match(prompt)
            if match.pieces:
                try:
                    return self._engine.new_state_from(match.pieces, max_tokens), match.known_tokens
                except RunError as error:
                    _log.warning("a kept prompt is dropped: %s", error)
                    self._forget(match, prompt)
            return self._engine.new_state(max_tokens), match.known_tokens
        return self._engine.new_state(max_tokens), 0

    def shared_tokens(self, prompt: NDArray[np.int32], other: NDArray[np.int32]) -> int:
        """Return how many tokens of a prompt need not be read once another one has been."""
        if self.cache is None:
            return 0
        length = min(len(prompt) - 1, len(other))
        differs = np.flatnonzero(prompt[:length] != other[:length])
        common = int(differs[0]) if differs.size else length
        return common // self._chunk_tokens * self._chunk_tokens

    def keep_prompt(self, state: State, prompt: Sequence[int], branches: Set[int]) -> None:
        """Keep what was read of a prompt up to the state's position, if that is a place to keep.

        branches: numbers of tokens after which other prompts go on otherwise.
        """
        position, chunk = state.position, self._chunk_tokens
        if position % chunk == 0:
            is_last = position + chunk >= len(prompt)
            self._keep(state, prompt[:position], is_last or position in branches)
        elif self._whole_turns and position == len(prompt):
            self._keep(state, prompt, True)

    def keep_turn(self, state: State, tokens: Sequence[int]) -> None:
        """Keep an answer, given all tokens the state has seen."""
        if self._whole_turns:
            self._keep(state, tokens, True)

    def close(self) -> None:
        """Finish writing to disk."""
        if self.cache is not None:
            self.cache.close()

    def _keep(self, state: State, tokens: Sequence[int], can_be_last: bool) -> None:
        if self.cache is None or not isinstance(self._engine, ResumingEngine):
            return
        begin = self.cache.missing_from(tokens, can_be_last=can_be_last)
        if begin is None:
            return
        piece = self._engine.take_piece(state, begin, can_be_last=can_be_last)
        self.cache.keep(tokens, piece)

    def _forget(self, match: Match, prompt: Sequence[int]) -> None:
        if self.cache is not None:
            self.cache.forget(match, prompt)
