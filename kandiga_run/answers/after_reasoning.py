"""Reasoning left free, its length bounded, and what holds for the answer after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kandiga_run.generation.answer import TokenMask


class AfterReasoning:
    """A constraint that begins when the model has stopped thinking.

    A model that is made to answer in JSON from its first token cannot reason; one whose reasoning
    is free and whose answer is constrained can. It also says which tokens are reasoning, where
    stop strings do not count.
    """

    def __init__(
        self,
        constraint: TokenMask | None,
        end_tokens: Sequence[int],
        start_token: int | None = None,
        *,
        budget: int | None = None,
    ) -> None:
        """Leave tokens free up to and including `end_tokens`, the end of the reasoning.

        constraint: what holds after them, None for nothing.
        start_token: begins reasoning, if the model chooses it first of all; None: reasoning has
            begun.
        budget: after so many tokens of reasoning its end is all that may come.
        """
        self._constraint = constraint
        self._end = tuple(end_tokens)
        self._start = start_token
        self._recent: tuple[int, ...] = ()
        self._is_free = start_token is None
        self._budget, self._num_free = budget, 0
        #: whether the latest token was reasoning, the marks around it included
        self.in_reasoning = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        if self._is_free or self._constraint is None:
            return False
        return self._constraint.is_complete

    def mask(self) -> NDArray[np.uint32] | None:
        """Return the mask of the constraint, or None while every token may come."""
        if self._is_free:
            is_over = self._budget is not None and self._num_free >= self._budget
            return _only(self._next_of_end()) if is_over else None
        mask = self._constraint.mask() if self._constraint else None
        if mask is None or self._start is None:
            return mask
        mask = mask.copy()
        mask[self._start // 32] |= np.uint32(1 << self._start % 32)
        return mask

    def accept(self, token: int) -> None:
        """Go on after this token."""
        self.in_reasoning = self._is_free or token == self._start
        if self._is_free:
            self._num_free += 1
            self._recent = (*self._recent, token)[-len(self._end) :]
            self._is_free = self._recent != self._end
        elif self.in_reasoning:
            self._is_free = True
        elif self._constraint:
            self._constraint.accept(token)
        self._start = None

    def _next_of_end(self) -> int:
        """Return the token that goes on with the end mark, as much of it as was written."""
        for length in range(len(self._end) - 1, 0, -1):
            if self._recent[-length:] == self._end[:length]:
                return self._end[length]
        return self._end[0]


def _only(token: int) -> NDArray[np.uint32]:
    """Return a mask of one token; those past its end may not come."""
    mask = np.zeros(token // 32 + 1, np.uint32)
    mask[-1] = 1 << token % 32
    return mask
