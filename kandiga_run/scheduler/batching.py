"""One token further in several sequences, with any engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import BatchingEngine, Engine, State


def forward_sequences(
    engine: Engine, tokens: Sequence[int], states: Sequence[State]
) -> NDArray[np.float32]:
    """Append one token to each state; return logits (B, vocab_size).

    An engine that computes one sequence at a time does so, one after the other.
    """
    if isinstance(engine, BatchingEngine) and len(states) > 1:
        return engine.forward_sequences(tokens, states)
    logits = [
        engine.forward(np.array([token], dtype=np.int32), state)[0].copy()
        for token, state in zip(tokens, states, strict=True)
    ]
    return np.stack(logits)
