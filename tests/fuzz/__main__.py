"""`make fuzz`: fuzz at length, say what was tried and found, and keep every input that failed.

python -m fuzz --seconds 600           half for damaged sets, half for atheris' targets
python -m fuzz --again FILE            judge one kept input; its name begins with its target
python -m fuzz --again SEED:NUMBER     or one of a campaign
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz import campaign, sets
from fuzz.oracle import FOLDER_VARIABLE, memory_folder
from fuzz.targets import TARGETS, close


@dataclass
class Run:
    """What one process tried. died: how it ended, if not by itself."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    problems: dict[str, int] = field(default_factory=dict)
    died: str = ""

    def __str__(self) -> str:
        speed = self.inputs / max(self.seconds, 1e-9)
        found = sum(self.problems.values())
        line = f"{self.name:12} {self.inputs:9} inputs  {speed:7.0f} /s  {found} problems"
        return line + (f"  DIED: {self.died}" if self.died else "")


def start(name: str, arguments: list[str], stats: Path, limit_seconds: float) -> Run:
    """Run a module of this package with `arguments` and return what it wrote into `stats`."""
    run = Run(name)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--stats", str(stats)],
            timeout=limit_seconds + 300,
            # libFuzzer ends a process without letting Python tidy up.
            env=os.environ | {FOLDER_VARIABLE: str(stats.parent)},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        run.died = "did not end"
    else:
        if done.returncode:
            code = -done.returncode
            name = signal.Signals(code).name if code > 0 else f"exit {done.returncode}"
            run.died = f"{name}: {done.stderr[-2000:]}"
    if stats.exists():
        figures: dict[str, Any] = json.loads(stats.read_text())
        run.inputs, run.seconds = figures["inputs"], figures["seconds"]
        run.problems = figures["problems"]
    return run


def run_all(seconds: float, seed: str, names: list[str]) -> list[Run]:
    runs = []
    with tempfile.TemporaryDirectory(dir=memory_folder()) as temp:
        stats, current = Path(temp) / "stats", Path(temp) / "current"
        covered = importlib.util.find_spec("atheris") is not None
        if not covered:
            print("atheris is not installed (make fuzz installs it where it can): without coverage")
        share = seconds / 2 if covered and names else seconds
        arguments = ["fuzz.campaign", "--seconds", str(share), "--seed", seed]
        runs.append(start("sets", [*arguments, "--current", str(current)], stats, share))
        if runs[0].died:
            runs[0].died += f"\nat input {seed}:{current.read_text()}"
        print(runs[0], flush=True)
        for name in names if covered else []:
            stats.unlink(missing_ok=True)
            share = max(1, round(seconds / 2 / len(names)))
            arguments = ["fuzz.coverage", name, "--seconds", str(share)]
            runs.append(start(name, arguments, stats, share))
            print(runs[-1], flush=True)
    return runs


def again(what: str) -> int:
    """Judge one input again and print what is wrong with it."""
    path = Path(what)
    try:
        if path.is_file():
            target, data = TARGETS[path.name.split("-")[0]], path.read_bytes()
        else:
            seed, _, number = what.rpartition(":")
            files, done = campaign.make_input(campaign.seeds(), seed, int(number))
            print(", ".join(done))
            target, data = TARGETS["set"], sets.to_zip(files)
        problems = target.judge(data)
    finally:
        close()
    print("\n".join(problems) or "nothing is wrong")
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", default=str(int(time.time())), help="default: the time")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--again", metavar="INPUT")
    options = parser.parse_args()
    if options.again:
        return again(options.again)
    runs = run_all(options.seconds, options.seed, options.target or list(TARGETS))
    print(f"\nseed {options.seed}; inputs that failed are kept in {campaign.FOUND}")
    for run in runs:
        print(run)
        for problem, count in run.problems.items():
            print(f"    {count} x {problem}")
    problems = [problem for run in runs for problem in run.problems]
    differ = sum("differ" in problem for problem in problems)
    print(
        f"{sum(run.inputs for run in runs)} inputs, {sum(bool(run.died) for run in runs)} crashes, "
        f"{differ} kinds of disagreement, {len(problems) - differ} kinds of other problems"
    )
    return 1 if problems or any(run.died for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
