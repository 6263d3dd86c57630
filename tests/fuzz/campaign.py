"""Many damaged sets, one after another, in a process of its own that may die.

    python -m fuzz.campaign --seconds 60 --seed 1

Input number N of a seed is always the same, so a death is reproduced from two numbers.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz import sets
from fuzz.mutate import mutate_set
from fuzz.oracle import Oracle, scratch_folder
from fuzz.sets import Files, SetModel

HERE = Path(__file__).resolve().parent
VALID = HERE.parents[1] / "specs" / "vectors" / "valid"
FOUND = HERE / "corpus" / "found"
# No input may take a second, so this long is a hang, on a machine with much else to do.
WATCHDOG_SECONDS = 60


@dataclass
class Stats:
    """codes: how many inputs the reader refused with each; "valid" are those it did not."""

    inputs: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    largest_peak_bytes: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)


def valid_folders() -> list[Path]:
    """Return the valid vectors, but the one whose document would take most of the time."""
    return sorted(folder for folder in VALID.iterdir() if folder.name != "zstd-json-values")


def seeds() -> list[SetModel]:
    """Return the valid vectors, in parts."""
    return [sets.parse_set(sets.read_folder(folder)) for folder in valid_folders()]


def make_input(models: list[SetModel], seed: str, number: int) -> tuple[Files, list[str]]:
    rng = random.Random(f"{seed}:{number}")
    return mutate_set(rng.choice(models), rng)


def kind(problem: str) -> str:
    """Return a problem without its numbers, to count those of one kind together."""
    return re.sub(r"\d+(\.\d+)?", "N", problem)[:160]


def save(data: bytes, name: str, suffix: str) -> Path:
    """Keep an input; the same one has the same name."""
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
    path.write_bytes(data)
    return path


def run(
    seed: str,
    *,
    seconds: float | None = None,
    count: int | None = None,
    current: Path | None = None,
    keep: bool = True,
    stats: Stats | None = None,
) -> Stats:
    """Judge inputs 0, 1, 2 ... of a seed, for so long or so many.

    current: file to write each input's number to, for whoever finds this process dead.
    keep: save the first input of each kind of problem.
    """
    stats = stats or Stats()
    oracle = Oracle(scratch_folder("campaign"))
    models = seeds()
    begin = time.monotonic()
    number = 0
    try:
        while count is None or number < count:
            if seconds is not None and time.monotonic() - begin > seconds:
                break
            if current is not None:
                current.write_text(str(number))
                faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)
            files, done = make_input(models, seed, number)
            outcome = oracle.judge(files)
            stats.inputs += 1
            stats.slowest_seconds = max(stats.slowest_seconds, outcome.cost.seconds)
            stats.largest_peak_bytes = max(stats.largest_peak_bytes, outcome.cost.peak_bytes)
            stats.codes.update(set(outcome.reader) or {"valid"})
            for problem in outcome.problems:
                text = kind(problem)
                if not stats.problems[text]:
                    saved = save(sets.to_zip(files), "set", ".zip") if keep else None
                    print(f"{seed}:{number} {done}: {problem}  {saved or ''}", flush=True)
                stats.problems[text] += 1
            number += 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        oracle.close()
    stats.seconds = time.monotonic() - begin
    return stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--current", type=Path)
    parser.add_argument("--stats", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    stats = run(options.seed, seconds=options.seconds, count=options.count, current=options.current)
    if options.stats is not None:
        options.stats.write_text(json.dumps(vars(stats)))
    else:
        print(json.dumps(vars(stats), indent=1))


if __name__ == "__main__":
    main()
