"""Measure kandiga in this process; print a Run as JSON.

python -m benchmarks.peers.run_ours '{"model": FOLDER, "options": {...}, "task": {...}}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

import cython_kernels
from benchmarks.peers.task import Run, Task
from kandiga_run.engine import Engine, load_engine
from kandiga_run.memory.use import memory_use


def prefill(engine: Engine, num_tokens: int, rng: np.random.Generator) -> None:
    """Compute a prompt of random tokens."""
    tokens = rng.integers(0, engine.vocab_size, num_tokens).astype(np.int32)
    state = engine.new_state(num_tokens)
    for start in range(0, num_tokens, engine.prefill_chunk):
        engine.forward(tokens[start : start + engine.prefill_chunk], state)


def decode(engine: Engine, num_tokens: int, rng: np.random.Generator) -> None:
    """Compute random tokens one by one: nothing is sampled, as nothing is by llama-bench."""
    tokens = rng.integers(0, engine.vocab_size, num_tokens).astype(np.int32)
    state = engine.new_state(num_tokens)
    for i in range(num_tokens):
        engine.forward(tokens[i : i + 1], state)


def tokens_per_second(
    step: Callable[[Engine, int, np.random.Generator], None],
    engine: Engine,
    num_tokens: int,
    repetitions: int,
) -> list[float]:
    """Return the speed of every repetition, none when there is nothing to compute."""
    rng, speeds = np.random.default_rng(0), []
    for _ in range(repetitions if num_tokens else 0):
        started = perf_counter()
        step(engine, num_tokens, rng)
        speeds.append(num_tokens / (perf_counter() - started))
    return speeds


def measure(model: str, options: dict[str, Any], task: Task) -> Run:
    """Load the model and compute."""
    started = perf_counter()
    engine = load_engine(model, num_threads=task.threads, **options)
    load_seconds = perf_counter() - started
    try:
        if task.warm_up:
            rng = np.random.default_rng(1)
            prefill(engine, task.prefill or 1, rng)
            decode(engine, 1, rng)
        run = Run(
            tokens_per_second(prefill, engine, task.prefill, task.repetitions),
            tokens_per_second(decode, engine, task.decode, task.repetitions),
            load_seconds,
        )
        use = memory_use()
        run.about = {
            "isa": cython_kernels.isa(),
            "options": options,
            "stats": engine.stats.to_dict(),
            "peak_resident_bytes": use.peak_resident_bytes,
            "cgroup_bytes": use.cgroup_bytes,
        }
        return run
    finally:
        engine.close()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(vars(measure(asked["model"], asked["options"], Task(**asked["task"])))))
