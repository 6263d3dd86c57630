"""Greedy decoding without the generation loop, to compare answers with."""

from typing import Any

import numpy as np


def direct_greedy(engine: Any, prompt: list[int], count: int, stops: frozenset[int]) -> list[int]:
    """Return up to `count` tokens that follow a prompt, the one that stops included."""
    state = engine.new_state(len(prompt) + count)
    logits = engine.forward(np.array(prompt, np.int32), state)
    answer: list[int] = []
    while len(answer) < count and (not answer or answer[-1] not in stops):
        answer.append(int(logits[-1].argmax()))
        logits = engine.forward(np.array(answer[-1:], np.int32), state)
    return answer
