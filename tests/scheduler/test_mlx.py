"""The scheduler over an engine that computes one sequence at a time and keeps no prompts."""

from __future__ import annotations

import numpy as np

from kandiga_run import GenerateOptions, generate, load_engine
from kandiga_run.scheduler import Finished, Request, Scheduler, Token
from packed import PackedModels


def test_answers_are_those_given_alone(packed: PackedModels) -> None:
    engine = load_engine(packed("qwen3_moe").container, engine="mlx")
    options = GenerateOptions(max_tokens=5)
    prompts = [
        tuple(np.random.default_rng(seed).integers(1, 300, 10 + seed).tolist()) for seed in range(3)
    ]
    scheduler = Scheduler(engine, context_tokens=100)
    tickets = [scheduler.submit(Request(prompt, options)) for prompt in prompts]
    answers = []
    for ticket in tickets:
        events = list(ticket)
        assert isinstance(events[-1], Finished), events[-1]
        answers.append([event.id for event in events if isinstance(event, Token)])
    assert scheduler.status().cache_capacity_bytes == 0
    scheduler.close()
    for prompt, answer in zip(prompts, answers, strict=True):
        generation = generate(engine, prompt, options)
        list(generation)
        assert generation.token_ids == answer
    engine.close()
