"""What every engine checks before it computes, in the same words."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kandiga_run.engine.seam import State
from kandiga_run.errors import RunError


def checked_tokens(tokens: ArrayLike, state: State, vocab_size: int) -> NDArray[np.int32]:
    """Return tokens (T,) as contiguous int32.

    RunError when there is none, when the state has no room for them, or when one is outside the
    vocabulary.
    """
    given = np.asarray(tokens)
    if given.ndim != 1 or given.size == 0:
        raise RunError(f"tokens of shape {given.shape}, wanted (T,) with at least one")
    if state.position + given.size > state.max_tokens:
        raise RunError(
            f"{given.size} more tokens at position {state.position} exceed the "
            f"{state.max_tokens} tokens this state was made for"
        )
    # Before they become int32, in which a larger number could look like another token.
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise RunError(f"token {wrong} is outside the vocabulary of {vocab_size}")
    return np.ascontiguousarray(given, np.int32)


def check_max_tokens(max_tokens: int) -> None:
    """Raise RunError for a state without room for a token."""
    if max_tokens < 1:
        raise RunError(f"a state for {max_tokens} tokens was asked for, wanted at least 1")


def resolve_top_k(requested: int | Literal["fast"] | None, top_k: int, num_experts: int) -> int:
    """Return the experts a token uses in this run, from the user's choice and the config.

    "fast" is half of the model's own number, at least one. RunError when the model has fewer
    experts than were asked for.
    """
    if requested is None:
        return top_k
    if requested == "fast":
        return max(1, top_k // 2)
    if not 1 <= requested <= num_experts:
        raise RunError(
            f"--experts {requested}: a token can use 1 to {num_experts} experts of this model "
            f"(its own number is {top_k})"
        )
    return requested
