"""One target under atheris, which keeps the inputs that reach lines no other reached.

    python -m fuzz.coverage TARGET --seconds 60 --seed 1 --stats FILE

Half of the inputs come from the target's own mutator, which puts checksums right; the others from
libFuzzer's, which knows the comparisons it saw.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["formats", "specs", "kandiga_pack.sources"]):
    from fuzz import targets

from fuzz import limits
from fuzz.campaign import FOUND, kind, save

MAX_INPUT_BYTES = 1 << 20
# Counting the lines that are reached makes the Python code slower by as much.
SLOWNESS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stats", type=Path, required=True)
    options = parser.parse_args()
    limits.MAX_SECONDS *= SLOWNESS
    target = targets.TARGETS[options.target]
    FOUND.mkdir(parents=True, exist_ok=True)
    problems: Counter[str] = Counter()
    begin = time.monotonic()
    written = begin
    inputs = 0

    def write_stats() -> None:
        seconds = time.monotonic() - begin
        figures = {"inputs": inputs, "seconds": seconds, "problems": problems}
        options.stats.write_text(json.dumps(figures))

    def one_input(data: bytes) -> None:
        nonlocal inputs, written
        inputs += 1
        for problem in target.judge(data):
            text = kind(problem)
            if not problems[text]:
                path = save(data, options.target, ".zip" if options.target == "set" else ".bin")
                print(f"{options.target}: {problem}  {path}", flush=True)
            problems[text] += 1
        # libFuzzer ends the process without a word to Python.
        if time.monotonic() - written > 1:
            written = time.monotonic()
            write_stats()

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return target.mutate(data, rng)[:max_size]
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(target.seeds()):
            (Path(corpus) / f"seed-{number}").write_bytes(data)
        arguments = [
            f"-max_total_time={options.seconds}",
            f"-seed={options.seed}",
            f"-max_len={MAX_INPUT_BYTES}",
            "-timeout=60",
            f"-artifact_prefix={FOUND / options.target}-",
            "-report_slow_units=1000",
            "-rss_limit_mb=2048",
            "-print_final_stats=0",
            "-verbosity=0",
            corpus,
        ]
        write_stats()
        atheris.Setup([sys.argv[0], *arguments], one_input, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
