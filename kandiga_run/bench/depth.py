"""A sequence of some length, for measuring what the next token costs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kandiga_run.engine import Engine, State
from kandiga_run.kv.recurrent import RecurrentState
from kandiga_run.native.state import NativeState

Filling = Literal["empty", "made-up", "prefilled"]

_PIECE_TOKENS = 1024
# Large enough that a recurrent state has no subnormal numbers, small enough that it stays finite.
_RECURRENT_SCALE = 0.1


def reach_depth(
    engine: Engine, state: State, tokens: np.ndarray[tuple[int], np.dtype[np.int32]], *, real: bool
) -> Filling:
    """Let an empty state hold as many tokens as `tokens` has; return how it came by them.

    Not `real`: keys, values and recurrent states are random numbers. A decode step reads and
    computes the same amount whatever they are, and 32K tokens take a second instead of minutes.
    Engines whose caches cannot be written to (mlx) prefill in any case.
    """
    if not tokens.size:
        return "empty"
    if real or not isinstance(state, NativeState):
        engine.forward(tokens, state)
        return "prefilled"
    _make_up(state, tokens.size)
    return "made-up"


def _make_up(state: NativeState, num_tokens: int) -> None:
    rng = np.random.default_rng(num_tokens)
    for cache in state.caches:
        if isinstance(cache, RecurrentState):
            for array in (cache.conv, cache.delta):
                array[...] = rng.standard_normal(array.shape, np.float32) * _RECURRENT_SCALE
            continue
        for start in range(0, num_tokens, _PIECE_TOKENS):
            shape = (min(_PIECE_TOKENS, num_tokens - start), *cache.head_shape)
            cache.append(
                rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
            )
    state.position = num_tokens
