"""A long context in little memory: what a model of 40 layers needs, and a real run. A program.

    PYTHONPATH=tests python tests/benchmarks/kv_long_context.py MODEL [--memory 4GB]
        [--tokens 131072] [--layers 40]

MODEL is a container of the qwen3.5-35b-a3b shape with some of its layers (`kandiga-pack synth
qwen3.5-35b-a3b --layers 12`). The plan counts the parts of the open engine, those of a layer
times --layers over the layers that MODEL has: its pattern of layers repeats. The run fills the
caches up to the depth with made-up keys and values, computes a chunk of a prompt there, then some
tokens, within the budget, and prints the most memory the process ever had.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import click
import numpy as np

from kandiga_run.bench.depth import reach_depth
from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError
from kandiga_run.experts.owned import smallest_budget
from kandiga_run.kv.choices import BITS
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.recurrent import RecurrentState
from kandiga_run.memory.use import memory_use
from kandiga_run.native.engine import NativeEngine
from kandiga_run.native.memory_plan import FEW_ROWS
from kandiga_run.sizes import format_size, parse_size

#: Decoded tokens are as many as two blocks have, so two blocks a layer are coded meanwhile.
CHUNK_TOKENS, DECODE_TOKENS = 512, 256


def peak_bytes() -> int:
    """Return the most memory that was ever resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plan(engine: NativeEngine, num_layers: int, num_tokens: int, budget_bytes: int) -> list[str]:
    """Return lines of a markdown table: parts of the memory for every choice of --kv."""
    model, decoder, weights = engine._model, engine._open_decoder(), engine._weights
    times = num_layers / len(model.container.layers)
    head = sum(t.length_bytes for name, t in model.dense.items() if "lm_head" in name)
    dense = head + (weights.nbytes - head) * times
    others = dense + engine._own_bytes + engine._plan._scratch.bytes_for(FEW_ROWS)
    others += smallest_budget(model.container)
    rows = [
        f"{num_layers} layers, {num_tokens} tokens: everything but the state takes "
        f"{others / 1e9:.2f} GB, the smallest pool of experts included\n",
        f"| --kv | state | with the rest | left for more experts of {budget_bytes / 1e9:.0f} GB |",
        "|---|---|---|---|",
    ]
    for name in ("fp16", *BITS):
        state = decoder.state_bytes(num_tokens, KVPlan(name, np.dtype(np.float16))) * times
        left = budget_bytes - others - state
        told = f"{left / 1e9:.2f} GB" if left >= 0 else "does not fit"
        rows.append(f"| {name} | {state / 1e9:.2f} GB | {(others + state) / 1e9:.2f} GB | {told} |")
    return rows


def run(engine: NativeEngine, num_tokens: int) -> list[str]:
    """Return what a chunk of a prompt and some tokens at a depth of `num_tokens` take."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, engine.vocab_size, num_tokens).astype(np.int32)
    state = engine.new_state(num_tokens + CHUNK_TOKENS + DECODE_TOKENS)
    reach_depth(engine, state, tokens, real=False)
    filled = memory_use().anonymous_bytes or 0
    started = time.perf_counter()
    engine.forward(tokens[:CHUNK_TOKENS], state)
    chunk_seconds = time.perf_counter() - started
    before, started = engine.stats.snapshot(), time.perf_counter()
    for token in tokens[:DECODE_TOKENS]:
        engine.forward(np.array([token], np.int32), state)
    token_seconds = (time.perf_counter() - started) / DECODE_TOKENS
    spent = engine.stats.minus(before)
    kv = sum(c.nbytes for c in state.caches if not isinstance(c, RecurrentState))
    share = spent.kv_coding_seconds / spent.forward_seconds
    return [
        f"kv {state.kv_format}, {state.position} tokens: {format_size(kv)} of keys and values",
        f"anonymous memory with the caches filled: {format_size(filled)}",
        f"a chunk of {CHUNK_TOKENS} tokens at that depth: {chunk_seconds:.1f} s",
        f"a token: {token_seconds * 1e3:.0f} ms, of that attention "
        f"{spent.attention_seconds / DECODE_TOKENS * 1e3:.1f} ms",
        f"coding: {spent.kv_coding_seconds / DECODE_TOKENS * 1e6:.0f} us a token, "
        f"{share:.2%} of decode",
        f"peak resident memory: {format_size(peak_bytes())}",
    ]


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--memory", default="4GB", show_default=True)
@click.option("--tokens", default=131072, show_default=True)
@click.option("--layers", default=40, show_default=True)
@click.option("--kv", default="k4v3", show_default=True)
def main(model: Path, memory: str, tokens: int, layers: int, kv: str) -> None:
    """Print the plan, then what the run took."""
    budget_bytes = parse_size(memory)
    for choice in dict.fromkeys(["fp16", kv]):
        needed = tokens + CHUNK_TOKENS + DECODE_TOKENS
        try:
            engine = load_engine(
                model, memory_bytes=budget_bytes, kv=choice, state_tokens=needed, engine="native"
            )
        except RunError as error:
            print(f"--kv {choice} --memory {memory}: {error}\n")
            continue
        assert isinstance(engine, NativeEngine)
        if choice == kv:
            print("\n".join(plan(engine, layers, tokens, budget_bytes)), end="\n\n")
            print(f"{model.name}, {len(engine._model.container.layers)} layers, within {memory}")
            print("\n".join(run(engine, tokens)))
        engine.close()


if __name__ == "__main__":
    main()
