"""An expert that cannot be read ends the answers that need it, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from formats import KexpError, open_set
from kandiga_run import GenerateOptions, generate, load_engine
from kandiga_run.scheduler import Event, Failed, Finished, Request, Scheduler, Token
from packed import PackedModels
from wrong_bit import flip_bit

CONTEXT = 64
NUM_EXPERTS = 24
MAX_TOKENS = 12
PROMPTS = [(11,), (57, 3), (201, 4, 9)]


@pytest.fixture(params=["qwen3_moe", "qwen3_next"])
def folder(packed: PackedModels, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    model = packed(request.param, overrides={"num_experts": NUM_EXPERTS})
    return shutil.copytree(model.container, tmp_path / "model")


class Damage:
    """Flips a bit of an expert, and back."""

    def __init__(self, folder: Path, layer: int, expert: int) -> None:
        with open_set(folder) as opened:
            self.extent = opened.extent(layer, expert)
            self.path = opened.shards[self.extent.shard].path

    def flip(self) -> None:
        flip_bit(self.path, self.extent.offset_bytes + 5, 4)


def alone(folder: Path) -> list[list[int] | None]:
    """Return each answer, or None where it meets the damage after its first token."""
    answers: list[list[int] | None] = []
    for prompt in PROMPTS:
        engine = load_engine(folder, engine="native", num_experts_per_token=1)
        generation = generate(engine, prompt, GenerateOptions(max_tokens=MAX_TOKENS))
        try:
            list(generation)
            answers.append(generation.token_ids)
        except KexpError:
            assert generation.token_ids, "the prompt itself meets the damage"
            answers.append(None)
        engine.close()
    return answers


@pytest.fixture
def damaged(folder: Path) -> Iterator[tuple[Path, list[list[int] | None], Damage]]:
    """Yield a model in which one answer of several meets a damaged expert while it is decoded."""
    for expert in range(NUM_EXPERTS):
        damage = Damage(folder, 1, expert)
        damage.flip()
        try:
            answers = alone(folder)
        except AssertionError:
            answers = []
        if answers.count(None) == 1:
            yield folder, answers, damage
            return
        damage.flip()
    pytest.fail("no expert is needed by one answer alone")


def test_the_others_go_on(damaged: tuple[Path, list[list[int] | None], Damage]) -> None:
    folder, expected, damage = damaged
    engine = load_engine(folder, engine="native", num_experts_per_token=1)
    scheduler = Scheduler(engine, context_tokens=CONTEXT, max_running=len(PROMPTS))
    options = GenerateOptions(max_tokens=MAX_TOKENS)
    tickets = [scheduler.submit(Request(prompt, options)) for prompt in PROMPTS]
    # A prompt of so many tokens needs every expert, and fails before it says anything.
    long_prompt = tuple(np.random.default_rng(1).integers(1, 300, CONTEXT * 3 // 4).tolist())
    all_at_once = list(scheduler.submit(Request(long_prompt, options)))
    assert isinstance(all_at_once[-1], Failed)
    assert isinstance(all_at_once[-1].error, KexpError)
    all_events: list[list[Event]] = [list(ticket) for ticket in tickets]
    for events, wanted in zip(all_events, expected, strict=True):
        end = events[-1]
        if wanted is None:
            assert isinstance(end, Failed)
            assert isinstance(end.error, KexpError)
            assert end.error.expert == damage.extent.expert
        else:
            assert isinstance(end, Finished)
            assert [event.id for event in events if isinstance(event, Token)] == wanted
    status = scheduler.status()
    assert (status.failed, status.finished) == (2, len(PROMPTS) - 1)
    # Mended, the same scheduler answers what failed.
    damage.flip()
    scheduler.close()
    engine.close()
    assert None not in alone(folder)
