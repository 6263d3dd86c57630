"""One answer without an engine: logits are written by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kandiga_run import GenerateOptions, RunError, SamplingOptions
from kandiga_run.generation.answer import Answer

VOCAB = 8


def favouring(*tokens: int) -> NDArray[np.float32]:
    """Return logits whose largest belong to `tokens`, the first above the others."""
    logits = np.zeros(VOCAB, np.float32)
    for rank, token in enumerate(tokens):
        logits[token] = 10 - rank
    return logits


class Countdown:
    """Allows token 3 and nothing else, until it came twice."""

    in_reasoning = False

    def __init__(self) -> None:
        self.accepted: list[int] = []

    @property
    def is_complete(self) -> bool:
        return len(self.accepted) == 2

    def mask(self) -> NDArray[np.uint32]:
        return np.array([1 << 3], np.uint32)

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_stop_token_ends_the_answer() -> None:
    answer = Answer(GenerateOptions(stop_token_ids=frozenset({5})), [1, 2])
    answer.add(favouring(4))
    assert answer.finish_reason is None
    answer.add(favouring(5))
    assert answer.token_ids == [4, 5]
    assert answer.finish_reason == "stop"


def test_the_limit_ends_the_answer() -> None:
    answer = Answer(GenerateOptions(max_tokens=9), [1], limit=2)
    for _ in range(2):
        assert answer.finish_reason is None
        answer.add(favouring(4))
    assert answer.finish_reason == "length"


def test_a_mask_narrows_the_choice_and_ends_the_answer() -> None:
    mask = Countdown()
    answer = Answer(GenerateOptions(logprobs=1), [1], mask=mask)
    first = answer.add(favouring(7, 6))
    # Log probabilities are the model's own: its favourite is still told.
    assert first.id == 3
    assert first.top_logprobs[0][0] == 7
    answer.add(favouring(7))
    assert mask.accepted == [3, 3]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_draws_stay_within_the_mask(temperature: float) -> None:
    sampling = SamplingOptions(temperature=temperature, seed=3, top_p=0.9)
    answer = Answer(GenerateOptions(sampling=sampling, max_tokens=50), [1], mask=Countdown())
    assert {answer.add(favouring(1, 2)).id for _ in range(20)} == {3}


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    class Nothing(Countdown):
        def mask(self) -> NDArray[np.uint32]:
            return np.zeros(1, np.uint32)

    with pytest.raises(RunError, match="no token is allowed"):
        Answer(GenerateOptions(), [1], mask=Nothing()).add(favouring(1))
