"""Tokens per second of sequences decoded together, beside one alone.

    python tests/benchmarks/batching.py MODEL [--memory 3GB] [--sequences 1,2,4] [--steps 12]

Each round takes every number of sequences a few steps further, one after another, so that whatever
the machine does meanwhile touches all of them; the median of the rounds is printed. Sequences are
at different places in different random prompts. With --memory experts are read from disk.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import numpy as np

from kandiga_run import load_engine
from kandiga_run.engine import BatchingEngine, Engine, State
from kandiga_run.sizes import parse_size

PROMPT_TOKENS = 48


@dataclass
class Measured:
    """Of one number of sequences, round by round."""

    tokens_per_second: list[float] = field(default_factory=list)
    bytes_read_per_token: list[float] = field(default_factory=list)
    experts_per_token: list[float] = field(default_factory=list)


def prefilled(engine: Engine, seed: int, max_tokens: int) -> State:
    """Return a state that has seen a random prompt."""
    state = engine.new_state(PROMPT_TOKENS + max_tokens)
    length = PROMPT_TOKENS - seed
    engine.forward(random_tokens(engine, seed, length), state)
    return state


def random_tokens(engine: Engine, seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, engine.vocab_size, count).astype(np.int32)


def take_steps(engine: Engine, states: Sequence[State], seed: int, steps: int) -> None:
    """Take the sequences some random tokens further."""
    assert isinstance(engine, BatchingEngine)
    for tokens in random_tokens(engine, seed, steps * len(states)).reshape(steps, len(states)):
        if len(states) == 1:
            engine.forward(tokens, states[0])
        else:
            engine.forward_sequences(tokens.tolist(), states)


def measure(engine: Engine, counts: Sequence[int], rounds: int, steps: int) -> dict[int, Measured]:
    """Return the figures for each number of sequences."""
    most = max(counts)
    states = [prefilled(engine, seed, (rounds + 1) * steps * len(counts)) for seed in range(most)]
    results = {count: Measured() for count in counts}
    for number in range(rounds + 1):
        for count, result in results.items():
            before, started = engine.stats.snapshot(), perf_counter()
            take_steps(engine, states[:count], number * most + count, steps)
            seconds = perf_counter() - started
            if number == 0:  # experts that were never touched are checked first
                continue
            added, tokens = engine.stats.minus(before), steps * count
            result.tokens_per_second.append(tokens / seconds)
            result.bytes_read_per_token.append(added.bytes_read / tokens)
            result.experts_per_token.append(added.experts_requested / tokens)
    return results


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--memory", type=parse_size)
    parser.add_argument("--sequences", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    counts = [int(word) for word in options.sequences.split(",")]
    with closing(load_engine(options.model, memory_bytes=options.memory)) as engine:
        results = measure(engine, counts, options.rounds, options.steps)
        print(f"{engine.stats.residency}, {engine.stats.arithmetic}")
    print("sequences  tokens/s  times  experts/token  MB read/token")
    alone = median(results[counts[0]].tokens_per_second)
    for count, result in results.items():
        rate = median(result.tokens_per_second)
        print(
            f"{count:9}  {rate:8.2f}  {rate / alone:5.2f}  {median(result.experts_per_token):13.1f}"
            f"  {median(result.bytes_read_per_token) / 1e6:13.1f}"
        )


if __name__ == "__main__":
    main()
