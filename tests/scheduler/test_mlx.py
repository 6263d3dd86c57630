"""The scheduler over mlx, which computes one sequence at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from kandiga_run import GenerateOptions, RunError, generate, load_engine
from kandiga_run.engine import Engine
from kandiga_run.memory.use import memory_use
from kandiga_run.scheduler import CacheOptions, Scheduler
from packed import PackedModels
from scheduler.asking import Answered, Tokens, ask_all, text

CHUNK = 32
OPTIONS = GenerateOptions(max_tokens=5, prefill_chunk=CHUNK)


def answers(engine: Engine, cache: CacheOptions, *prompts: Tokens) -> list[Answered]:
    """Return (answer, kept tokens of the prompt) of prompts asked at the same time."""
    scheduler = Scheduler(engine, context_tokens=400, prefill_chunk=CHUNK, prefix_cache=cache)
    found = ask_all(scheduler, OPTIONS, *prompts)
    scheduler.close()
    return found


def asked_in_this_thread(engine: Engine, prompt: Tokens) -> list[int]:
    generation = generate(engine, prompt, OPTIONS)
    list(generation)
    return generation.token_ids


# Full attention; recurrent layers; sliding windows; latent attention; constants beside parameters.
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v3", "phimoe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_those_given_alone(
    packed: PackedModels, tmp_path: Path, family: str, dtype: str
) -> None:
    engine = load_engine(packed(family, dtype=dtype).container, engine="mlx")
    prompts = [text(0, 3 * CHUNK) + text(seed, 10 + 30 * seed) for seed in range(3)]
    # Before this thread asks: what it computed lazily would be there for the scheduler's.
    first = answers(engine, CacheOptions(folder=tmp_path), *prompts)
    second = answers(engine, CacheOptions(folder=tmp_path), *prompts)
    alone = [asked_in_this_thread(engine, prompt) for prompt in prompts]
    assert [ids for ids, _ in first] == alone
    assert [ids for ids, _ in second] == alone
    assert [kept for _, kept in second] == [(len(p) - 1) // CHUNK * CHUNK for p in prompts]
    engine.close()


def test_with_compressed_keys_and_values(packed: PackedModels) -> None:
    engine = load_engine(packed("qwen3_moe").container, engine="mlx", kv="k4v3")
    prompt = text(0, 200)
    longer = prompt + text(1, 9)
    # Together: the longer one goes on from what the other one leaves.
    found = answers(engine, CacheOptions(), prompt, longer)
    assert found == [
        (asked_in_this_thread(engine, prompt), 0),
        (asked_in_this_thread(engine, longer), 6 * CHUNK),
    ]
    engine.close()


def test_a_family_whose_caches_cannot_be_filled(packed: PackedModels) -> None:
    engine = load_engine(packed("deepseek_v41").container, engine="mlx")
    prompt = text(0, 100)
    asked_twice = [answers(engine, CacheOptions(), prompt) for _ in range(2)]
    assert asked_twice[0] == asked_twice[1] == [(asked_in_this_thread(engine, prompt), 0)]
    engine.close()


def test_kept_prompts_count_in_the_budget(packed: PackedModels) -> None:
    # The process that runs the tests counts in the budget too.
    budget = memory_use().resident_bytes + (1 << 30)
    engine = load_engine(packed("qwen3_moe").container, engine="mlx", memory_bytes=budget)
    with pytest.raises(RunError, match="a memory budget"):
        Scheduler(engine, context_tokens=400, prefix_cache=CacheOptions(capacity_bytes=1 << 40))
    engine.close()
