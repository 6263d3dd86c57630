"""Prompts that were read before: the same answers, with less to read. Real tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint_families import NATIVE_FAMILIES
from kandiga_run import GenerateOptions, generate, load_engine
from kandiga_run.engine import Engine
from kandiga_run.scheduler import (
    CacheOptions,
    Scheduler,
)
from packed import PackedModels
from scheduler.asking import Answered, Tokens, ask_all, text

CONTEXT = 600
#: Prompts of tens of tokens are cut as those of thousands are.
CHUNK = 32
MAX_TOKENS = 6


@pytest.fixture
def open_engine(packed: PackedModels) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def open_one(family: str, **options: Any) -> Engine:
        engines.append(load_engine(packed(family).container, engine="native", **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def start(engine: Engine, **options: Any) -> Scheduler:
    return Scheduler(engine, context_tokens=CONTEXT, prefill_chunk=CHUNK, **options)


def ask(scheduler: Scheduler, *prompts: Tokens, max_tokens: int = MAX_TOKENS) -> list[Answered]:
    return ask_all(scheduler, GenerateOptions(max_tokens=max_tokens), *prompts)


def alone(engine: Engine, prompt: Tokens, max_tokens: int = MAX_TOKENS) -> list[int]:
    """Return the answer of a scheduler that keeps nothing and runs nothing else."""
    nothing = CacheOptions(capacity_bytes=0)
    scheduler = start(engine, max_running=1, prefix_cache=nothing)
    [(ids, cached)] = ask(scheduler, prompt, max_tokens=max_tokens)
    scheduler.close()
    assert cached == 0
    return ids


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
@pytest.mark.parametrize("kv", ["auto", "k4v3"])
def test_answers_are_those_read_from_the_start(
    open_engine: Callable[..., Engine], family: str, kv: str
) -> None:
    engine = open_engine(family, kv=kv)
    system = text(0, 150)
    prompts = [system + text(seed, 20 + 7 * seed) for seed in range(1, 5)]
    prompts += [system, prompts[0], prompts[1] + text(9, 64), system[: 3 * CHUNK]]
    expected = [alone(engine, prompt) for prompt in prompts]
    scheduler = start(engine, max_running=3)
    first = ask(scheduler, *prompts)
    second = ask(scheduler, *prompts)
    status = scheduler.status()
    scheduler.close()
    assert [ids for ids, _ in first] == expected
    assert [ids for ids, _ in second] == expected
    # Whole chunks, but for the token that must be read to say what follows.
    assert [kept for _, kept in second] == [(len(p) - 1) // CHUNK * CHUNK for p in prompts]
    assert status.cache_hits >= len(prompts)
    assert status.cached_tokens == sum(kept for _, kept in first + second)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
def test_a_shared_beginning_is_read_once(open_engine: Callable[..., Engine], family: str) -> None:
    scheduler = start(open_engine(family))
    system = text(0, 4 * CHUNK)
    cached = [ask(scheduler, system + text(seed, 3 * CHUNK + 5))[0][1] for seed in range(1, 5)]
    scheduler.close()
    # A hybrid's state is kept where the second prompt turned out to depart from the first.
    hybrid = family == "qwen3_next"
    assert cached == [0, 0 if hybrid else 4 * CHUNK, 4 * CHUNK, 4 * CHUNK]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_5_moe"])
def test_prompts_that_come_together_are_read_once(
    open_engine: Callable[..., Engine], family: str
) -> None:
    engine = open_engine(family)
    system = text(0, 5 * CHUNK + 3)
    prompts = [system] * 3 + [system + text(1, 50)]
    expected = [alone(engine, prompt) for prompt in prompts]
    scheduler = start(engine, max_running=4)
    answers = ask(scheduler, *prompts)
    scheduler.close()
    assert [ids for ids, _ in answers] == expected
    assert sorted(cached for _, cached in answers) == [0] + [5 * CHUNK] * 3


@pytest.mark.parametrize("family", ["mixtral", "qwen3_5_moe"])
def test_whole_turns_leave_only_what_is_new(
    open_engine: Callable[..., Engine], family: str
) -> None:
    options = CacheOptions(whole_turns=True)
    scheduler = start(open_engine(family), prefix_cache=options)
    prompt = text(1, 3 * CHUNK + 11)
    [(answer, _)] = ask(scheduler, prompt)
    turn = prompt + tuple(answer) + text(2, 20)
    [(_, cached)] = ask(scheduler, turn)
    # The last token was chosen, not read.
    assert cached == len(prompt) + len(answer) - 1
    [(_, cached)] = ask(scheduler, turn)
    assert cached == 4 * CHUNK < len(turn)
    scheduler.close()


def test_memory_is_bounded(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine("qwen3_next")
    roomy = start(engine)
    ask(roomy, text(0, 3 * CHUNK + 1))
    needed = roomy.status().cache_bytes
    roomy.close()
    bound = needed * 2
    options = CacheOptions(capacity_bytes=bound)
    scheduler = start(engine, prefix_cache=options)
    for seed in range(6):
        ask(scheduler, text(seed, 3 * CHUNK + 1))
        assert 0 < scheduler.status().cache_bytes <= bound
    assert ask(scheduler, text(5, 3 * CHUNK + 1))[0][1] == 3 * CHUNK  # the latest is there
    assert ask(scheduler, text(0, 3 * CHUNK + 1))[0][1] == 0  # the oldest is not
    scheduler.close()


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe"])
def test_prompts_are_kept_from_run_to_run(
    open_engine: Callable[..., Engine], tmp_path: Path, family: str
) -> None:
    engine = open_engine(family)
    prompts = [text(seed, 100 + 30 * seed) for seed in range(3)]
    expected = [alone(engine, prompt) for prompt in prompts]
    options = CacheOptions(folder=tmp_path / "prompts")
    for run in range(2):
        scheduler = start(engine, prefix_cache=options)
        answers = [ask(scheduler, prompt)[0] for prompt in prompts]
        scheduler.close()
        assert [ids for ids, _ in answers] == expected
        if run:
            assert [n for _, n in answers] == [(len(p) - 1) // CHUNK * CHUNK for p in prompts]


def test_what_others_wrote_is_not_used(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    options, prompt = CacheOptions(folder=tmp_path), text(0, 100)
    (tmp_path / "notes.txt").write_text("not ours")
    for family in ("qwen3_moe", "mixtral"):
        for kv in ("auto", "kv4"):
            engine = open_engine(family, kv=kv)
            scheduler = start(engine, prefix_cache=options)
            assert ask(scheduler, prompt)[0] == (alone(engine, prompt), 0)
            scheduler.close()
    assert (tmp_path / "notes.txt").read_text() == "not ours"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_ignored_with_a_notice(
    open_engine: Callable[..., Engine],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    engine, prompt = open_engine("qwen3_next"), text(0, 100)
    options = CacheOptions(folder=tmp_path)
    scheduler = start(engine, prefix_cache=options)
    [(expected, _)] = ask(scheduler, prompt)
    scheduler.close()
    files = sorted(tmp_path.iterdir())
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        if damage == "flipped":
            content[-5] ^= 1
        file.write_bytes({"cut": content[:-9], "empty": b""}.get(damage, bytes(content)))
    scheduler = start(engine, prefix_cache=options)
    assert ask(scheduler, prompt) == [(expected, 0)]
    scheduler.close()
    assert "a kept prompt is ignored and removed" in caplog.text


def test_the_folder_is_bounded(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    bound = 300_000
    options = CacheOptions(folder=tmp_path, folder_bytes=bound)
    scheduler = start(open_engine("qwen3_next"), prefix_cache=options)
    for seed in range(8):
        ask(scheduler, text(seed, 70))
    scheduler.close()
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert 0 < sum(sizes) <= bound


def test_generate_gives_the_same(open_engine: Callable[..., Engine]) -> None:
    """A conversation on its own and a server agree, as long as both cut prompts alike."""
    engine, prompt = open_engine("qwen3_5_moe"), text(3, 100)
    options = GenerateOptions(max_tokens=MAX_TOKENS, prefill_chunk=CHUNK)
    generation = generate(engine, prompt, options)
    list(generation)
    assert generation.token_ids == alone(engine, prompt)
