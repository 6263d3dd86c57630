"""What opening the largest published shape costs: 60 layers of 512 experts. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/open_cost.py [--rounds 20]

Time is processor time: nothing waits for the disk, and a busy machine does not matter. The files
are sparse: real offsets and sizes of Qwen3.5-397B-A17B at 4 bits, holes for weights.
Memory is what a process of its own takes from just before it opens the set to just after.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from formats import open_set
from sparse_set import write_sparse_set

_MEASURE = """
import sys
from formats import open_set
from kandiga_run.memory.use import memory_use
before = memory_use()
opened = open_set(sys.argv[1])
after = memory_use()
print(after.resident_bytes - before.resident_bytes)
print(after.peak_resident_bytes - before.resident_bytes)
"""


@click.command()
@click.option("--rounds", default=20)
def main(rounds: int) -> None:
    """Print time and memory."""
    with tempfile.TemporaryDirectory() as scratch:
        dest = Path(scratch) / "model"
        write_sparse_set(dest)
        shards = sorted(dest.glob("*.kexp"))
        size = sum(shard.stat().st_size for shard in shards)
        seconds = []
        for _ in range(rounds):
            start = time.process_time()
            with open_set(dest) as opened:
                seconds.append(time.process_time() - start)
                num_experts = sum(map(opened.num_experts, opened.layers))
        command = [sys.executable, "-c", _MEASURE, dest]
        measured = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    held, peak = map(int, measured.split())
    print(f"{len(shards)} shards, {size / 1e9:.0f} GB, {num_experts} experts")
    middle, fastest = statistics.median(seconds) * 1e3, min(seconds) * 1e3
    print(f"open: median {middle:.1f} ms, fastest {fastest:.1f} ms of processor time")
    print(f"memory: {held / 1e6:.1f} MB held, {peak / 1e6:.1f} MB at most")


if __name__ == "__main__":
    main()
