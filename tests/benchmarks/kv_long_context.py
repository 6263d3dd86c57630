"""A long context in little memory, in a control group of the kernel's. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/kv_long_context.py MODEL [--memory 4GB]
        [--tokens 131072] [--kv k4v3] [--plan-layers 40]

MODEL is a container of the qwen3.5-35b-a3b shape (`kandiga-pack synth qwen3.5-35b-a3b q35`). The
plan counts the parts of the open engine for every choice of --kv. The run fills the caches with
made-up keys and values through the real append path, up to some depths, and really computes the
next 2048 tokens of a prompt at each; at the last, which reaches --tokens, it goes on to decode. All
of it is within the budget, and in a group whose limit is the budget too, page cache included. Root
may make one, see `kandiga-run bench --memory-cap`.

A whole prompt is then estimated: the time of a chunk between two depths is taken to lie on the line
between theirs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from kandiga_run.bench.depth import reach_depth
from kandiga_run.bench.memory_group import GroupUse, make_memory_group
from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError
from kandiga_run.experts.owned import smallest_budget
from kandiga_run.kv.choices import BITS
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.recurrent import RecurrentState
from kandiga_run.native.engine import NativeEngine
from kandiga_run.native.memory_plan import FEW_ROWS
from kandiga_run.sizes import format_size, parse_size

CHUNK_TOKENS = 2048
#: As many as a block has, so each layer codes one meanwhile.
DECODE_TOKENS = 128
#: Where chunks begin, as shares of the way to the last one.
DEPTHS = (0, 1)


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


def run(engine: NativeEngine, num_tokens: int) -> Iterator[str]:
    """Yield what chunks of a prompt take on the way to `num_tokens`, then what tokens take."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, engine.vocab_size, num_tokens).astype(np.int32)
    last = num_tokens - CHUNK_TOKENS
    depths, seconds = [int(share * last) for share in DEPTHS], []
    for depth in depths:
        state = None  # its memory is the next one's
        state = engine.new_state(num_tokens + DECODE_TOKENS)
        reach_depth(engine, state, tokens[:depth], real=False)
        started = time.perf_counter()
        engine.forward(tokens[:CHUNK_TOKENS], state)
        seconds.append(time.perf_counter() - started)
        yield f"{CHUNK_TOKENS} tokens of a prompt after {depth}: {seconds[-1]:.1f} s"
    assert state is not None
    chunks = np.arange(0, num_tokens, CHUNK_TOKENS)
    whole = float(np.interp(chunks, depths, seconds).sum())
    yield f"estimate of a whole prompt of {num_tokens} tokens: {whole / 60:.0f} minutes"
    before, started = engine.stats.snapshot(), time.perf_counter()
    for token in tokens[:DECODE_TOKENS]:
        engine.forward(np.array([token], np.int32), state)
    token_seconds = (time.perf_counter() - started) / DECODE_TOKENS
    spent = engine.stats.minus(before)
    kv = sum(c.nbytes for c in state.caches if not isinstance(c, RecurrentState))
    share = spent.kv_coding_seconds / spent.forward_seconds
    yield (
        f"kv {state.kv_format}, {state.position} tokens: {format_size(kv)} of keys and values, "
        f"{format_size(state.recurrent_nbytes)} of recurrent state"
    )
    yield (
        f"a token: {token_seconds * 1e3:.0f} ms, of that attention "
        f"{spent.attention_seconds / DECODE_TOKENS * 1e3:.1f} ms"
    )
    coding = spent.kv_coding_seconds / DECODE_TOKENS
    yield f"coding: {coding * 1e6:.0f} us a token, {share:.2%} of decode"


def compute(model: Path, budget_bytes: int, num_tokens: int, kv: str, layers: int | None) -> None:
    """Print the plan, then what the run takes."""
    try:
        engine = load_engine(
            model,
            memory_bytes=budget_bytes,
            kv=kv,
            state_tokens=num_tokens + DECODE_TOKENS,
            engine="native",
        )
    except RunError as error:
        print(f"--kv {kv}: {error}")
        return
    assert isinstance(engine, NativeEngine)
    own_layers = len(engine._model.container.layers)
    print("\n".join(plan(engine, layers or own_layers, num_tokens, budget_bytes)), end="\n\n")
    print(f"{model.name}, {own_layers} layers, within {format_size(budget_bytes)}")
    for line in run(engine, num_tokens):
        print(line, flush=True)
    engine.close()


def in_group(budget_bytes: int) -> GroupUse:
    """Run this program again, within a control group; return what the kernel counted."""
    with make_memory_group(budget_bytes) as group:
        join = f'echo $$ > {group.processes_file} && exec "$@"'
        command = [sys.executable, *sys.argv, "--inside"]
        subprocess.run(["/bin/sh", "-c", join, "sh", *command], check=True)
        return group.use()


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--memory", default="4GB", show_default=True)
@click.option("--tokens", default=131072, show_default=True)
@click.option("--plan-layers", type=int, help="Of the plan; by default those of MODEL.")
@click.option("--kv", default="k4v3", show_default=True)
@click.option("--inside", is_flag=True, hidden=True)
def main(
    model: Path, memory: str, tokens: int, plan_layers: int | None, kv: str, inside: bool
) -> None:
    """Print the plan, what the run took, and the memory it was charged for."""
    budget_bytes = parse_size(memory)
    if inside:
        compute(model, budget_bytes, tokens, kv, plan_layers)
        return
    use = in_group(budget_bytes)
    peak = "unknown" if use.peak_bytes is None else format_size(use.peak_bytes)
    print(
        f"control group of {format_size(budget_bytes)}: at most {peak} charged, page cache "
        f"included; met its limit: {use.met_limit}; out-of-memory kills: {use.oom_kills}"
    )


if __name__ == "__main__":
    main()
