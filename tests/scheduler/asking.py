"""Prompts asked of a scheduler at the same time."""

from __future__ import annotations

import numpy as np

from kandiga_run import GenerateOptions
from kandiga_run.scheduler import Finished, Prefilled, Request, Scheduler, Token

Tokens = tuple[int, ...]
#: (tokens of the answer, tokens of the prompt that were kept)
Answered = tuple[list[int], int]


def text(seed: int, length: int) -> Tokens:
    """Return `length` tokens without a meaning."""
    return tuple(np.random.default_rng(seed).integers(1, 300, length).tolist())


def ask_all(scheduler: Scheduler, options: GenerateOptions, *prompts: Tokens) -> list[Answered]:
    """Ask all at once; return the answers."""
    tickets = [scheduler.submit(Request(prompt, options)) for prompt in prompts]
    answers = []
    for ticket in tickets:
        events = list(ticket)
        assert isinstance(events[-1], Finished), events[-1]
        ids = [event.id for event in events if isinstance(event, Token)]
        first = next(event for event in events if isinstance(event, Prefilled))
        assert first.done == events[-1].usage.cached_tokens
        answers.append((ids, events[-1].usage.cached_tokens))
    return answers
