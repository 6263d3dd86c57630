"""How large the KV cache is, from the arrays held. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/kv_size.py [--heads 2 --head-dim 256]

The default is a layer of Qwen3.5-35B-A3B. Sinks, tail, means, scales and the tables that find the
blocks are counted.
"""

from __future__ import annotations

import click
import numpy as np

from kandiga_run.kv.choices import BITS
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.plain import PlainKVCache
from kandiga_run.kv.turboquant import TurboQuantKVCache

LENGTHS = (4096, 8192, 16384, 32768, 131072)
#: What kandiga 0.3.1 states for each length.
STATED_BEFORE = 3.8


def held_bytes(name: str, num_heads: int, head_dim: int, num_tokens: int) -> int:
    """Return the size of a layer's cache that really holds so many tokens."""
    layer = KVPlan(name, np.dtype(np.float16)).layer(0, 1)
    cache = layer.new_cache(num_heads, head_dim, num_tokens)
    assert isinstance(cache, TurboQuantKVCache)
    rows = np.zeros((num_heads, num_tokens, head_dim), np.float16)
    cache.take_plain(rows, rows)
    return cache.nbytes


@click.command()
@click.option("--heads", "num_heads", default=2, show_default=True, help="KV heads.")
@click.option("--head-dim", default=256, show_default=True)
def main(num_heads: int, head_dim: int) -> None:
    """Print a markdown table of compression against fp16."""
    print(f"{num_heads} KV heads of {head_dim}, times smaller than fp16\n")
    print(f"| --kv | {' | '.join(f'{length // 1024}K' for length in LENGTHS)} | bits at 128K |")
    print(f"|---|{'---|' * (len(LENGTHS) + 1)}")
    for name in BITS:
        ratios = []
        for length in LENGTHS:
            plain = PlainKVCache.bytes_for(num_heads, head_dim, length, np.float16)
            ratios.append(plain / held_bytes(name, num_heads, head_dim, length))
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {cells} | {16 / ratios[-1]:.2f} |")
    print(f"| kandiga 0.3.1, as stated | {' | '.join([str(STATED_BEFORE)] * 4)} | | |")


if __name__ == "__main__":
    main()
