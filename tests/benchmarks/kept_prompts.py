"""Seconds to the first token of a prompt: read, kept in memory, kept on disk by an earlier run.

    python tests/benchmarks/kept_prompts.py MODEL [--prompt 3000] [--memory 3GB]

Each round asks for a prompt that was never seen, for the same beginning with another end, and for
that once more from a scheduler that has just been started on the same folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from kandiga_run import GenerateOptions, load_engine
from kandiga_run.engine import Engine
from kandiga_run.scheduler import CacheOptions, Request, Scheduler, Token
from kandiga_run.sizes import parse_size

NEW_TOKENS = 30


def first_token(scheduler: Scheduler, prompt: Sequence[int]) -> float:
    """Return the seconds until the first token."""
    started = perf_counter()
    ticket = scheduler.submit(Request(tuple(prompt), GenerateOptions(max_tokens=1)))
    for event in ticket:
        if isinstance(event, Token):
            return perf_counter() - started
    raise RuntimeError(ticket.so_far[-1])


def ask_three_times(engine: Engine, folder: Path, length: int, seed: int) -> tuple[float, ...]:
    """Return the seconds for a prompt that is new, kept in memory, kept on disk."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, engine.vocab_size, length).tolist()
    ends = rng.integers(0, engine.vocab_size, (3, NEW_TOKENS)).tolist()
    options = CacheOptions(capacity_bytes=2 << 30, folder=folder)

    def start() -> Scheduler:
        return Scheduler(engine, context_tokens=length + 1000, max_running=1, prefix_cache=options)

    with closing(start()) as scheduler:
        new = first_token(scheduler, prompt + ends[0])
        in_memory = first_token(scheduler, prompt + ends[1])
    with closing(start()) as scheduler:
        return new, in_memory, first_token(scheduler, prompt + ends[2])


def main() -> None:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=3000)
    parser.add_argument("--memory", type=parse_size)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with (
        closing(load_engine(options.model, memory_bytes=options.memory)) as engine,
        tempfile.TemporaryDirectory() as folder,
    ):
        rounds = [
            ask_three_times(engine, Path(folder), options.prompt, seed)
            for seed in range(options.rounds)
        ]
    new, in_memory, on_disk = (median(column) for column in zip(*rounds, strict=True))
    print(
        f"{options.prompt} tokens and {NEW_TOKENS} more: {new:.2f} s to the first token, "
        f"{in_memory:.2f} s kept in memory, {on_disk:.2f} s kept on disk"
    )


if __name__ == "__main__":
    main()
