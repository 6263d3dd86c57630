"""Time of decode attention and of coding, compressed beside fp16. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/kv_speed.py [--lengths 4096,32768,131072]

The default is a layer of Qwen3.5-35B-A3B. Choices take turns within a round, and before each call
memory of many times the caches' size is read, as a token's weights are: keys and values come from
memory, whatever fits a cache. The figure is the median over the rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import cython_kernels
from kandiga_run.kv.cache import KVCache
from kandiga_run.kv.choices import BITS
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.plain import PlainKVCache
from kandiga_run.kv.turboquant import BLOCK_TOKENS, TurboQuantKVCache

EVICT_BYTES = 256 << 20
Array = NDArray[Any]


def filled(name: str, keys: Array, values: Array) -> KVCache:
    """Return a cache of keys and values (num_kv_heads, tokens, head_dim) float16."""
    num_heads, num_tokens, head_dim = keys.shape
    if name == "fp16":
        plain = PlainKVCache(num_heads, head_dim, num_tokens, np.float16)
        for start in range(0, num_tokens, 4096):
            part = slice(start, start + 4096)
            rows = (np.ascontiguousarray(a[:, part].transpose(1, 0, 2)) for a in (keys, values))
            plain.append(*(row.astype(np.float32) for row in rows))
        return plain
    coded = (
        KVPlan(name, np.dtype(np.float16)).layer(0, 1).new_cache(num_heads, head_dim, num_tokens)
    )
    assert isinstance(coded, TurboQuantKVCache)
    coded.take_plain(keys, values)
    return coded


def attention_seconds(
    names: list[str], shape: tuple[int, int, int], num_tokens: int, rounds: int
) -> dict[str, float]:
    """Return the median time of one token's attention over so many, for each choice."""
    num_heads, group, head_dim = shape
    rng = np.random.default_rng(0)
    keys, values = (
        rng.standard_normal((num_heads, num_tokens, head_dim), np.float32).astype(np.float16)
        for _ in range(2)
    )
    caches = {name: filled(name, keys, values) for name in names}
    del keys, values
    queries = rng.standard_normal((1, num_heads * group, head_dim)).astype(np.float32)
    out, evict = np.empty_like(queries), np.ones(EVICT_BYTES // 8)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, cache in caches.items():
            evict.sum()
            times[name].append(_seconds(lambda c=cache: c.attend(queries, head_dim**-0.5, out)))
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def coding_seconds(name: str, shape: tuple[int, int, int], blocks: int = 64) -> float:
    """Return the time to code one token of one layer."""
    num_heads, _, head_dim = shape
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((num_heads, blocks * BLOCK_TOKENS + 5, head_dim), np.float32)
    halves = rows.astype(np.float16)
    energies = rng.chisquare(1, (num_heads, head_dim)).astype(np.float32)
    times = []
    for _ in range(5):
        layer = KVPlan(name, np.dtype(np.float16)).layer(0, 1)
        cache = layer.new_cache(num_heads, head_dim, halves.shape[1])
        assert isinstance(cache, TurboQuantKVCache)
        times.append(_seconds(lambda c=cache: c.take_plain(halves, halves, energies)))
    return float(np.median(times)) / (blocks * BLOCK_TOKENS)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def plot(results: dict[int, dict[str, float]], path: Path) -> None:
    """Draw time over context length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = pyplot.subplots(figsize=(7, 4.5))[1]
    for name in next(iter(results.values())):
        times = [found[name] * 1e3 for found in results.values()]
        axes.loglog(list(results), times, "o-", label=name)
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("attention of one token and layer, ms")
    axes.legend()
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=110)


@click.command()
@click.option("--lengths", default="4096,32768,131072", show_default=True)
@click.option("--names", default=f"fp16,{','.join(BITS)}", show_default=True)
@click.option("--heads", "num_heads", default=2, show_default=True, help="KV heads.")
@click.option("--group", default=8, show_default=True, help="Query heads a KV head.")
@click.option("--head-dim", default=256, show_default=True)
@click.option("--layers", default=10, show_default=True, help="Layers with keys and values.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures there.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Needs matplotlib.")
def main(
    lengths: str,
    names: str,
    num_heads: int,
    group: int,
    head_dim: int,
    layers: int,
    rounds: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Print markdown tables: milliseconds of attention, times faster than fp16, time of coding."""
    shape = num_heads, group, head_dim
    chosen = names.split(",")
    results = {
        int(length): attention_seconds(chosen, shape, int(length), rounds)
        for length in lengths.split(",")
    }
    print(
        f"{num_heads} KV heads, {group} queries each, head_dim {head_dim}; {cython_kernels.isa()}, "
        f"{cython_kernels.num_threads()} threads; a layer, ms (times faster than fp16)\n"
    )
    print(f"| --kv | {' | '.join(f'{length // 1024}K' for length in results)} | coding, us |")
    print(f"|---|{'---|' * (len(results) + 1)}")
    for name in chosen:
        cells = [
            f"{found[name] * 1e3:.2f} ({found['fp16'] / found[name]:.2f})"
            for found in results.values()
        ]
        coding = "" if name == "fp16" else f"{coding_seconds(name, shape) * 1e6 * layers:.0f}"
        print(f"| {name} | {' | '.join(cells)} | {coding} |")
    print(f"\ncoding: a token, all {layers} layers")
    if json_path:
        json_path.write_text(json.dumps({str(k): v for k, v in results.items()}, indent=2))
    if plot_path:
        plot(results, plot_path)


if __name__ == "__main__":
    main()
