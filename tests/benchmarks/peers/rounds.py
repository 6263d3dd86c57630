"""Programs take turns, since machines have moods."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.programs import Program, ProgramError, run_once
from benchmarks.peers.task import Run, Task
from kandiga_run.bench import page_cache
from kandiga_run.bench.memory_group import make_memory_group
from kandiga_run.memory.use import available_bytes

# The rest is for buffers, and for what else the machine does.
_SHARE_TO_FILL = 0.8

Speeds = dict[str, dict[str, list[float]]]


def measure(
    programs: Sequence[Program], tasks: Mapping[str, Task], rounds: int, cap_bytes: int | None
) -> tuple[Speeds, dict[str, Run]]:
    """Return {measure: {program: tokens per second}} and the last run of each program.

    A program that fails says so and has no figures: under a small cap some of them must.
    """
    speeds: Speeds = {}
    last: dict[str, Run] = {}
    for turn in range(1, rounds + 1):
        for state, task in tasks.items():
            for program in programs:
                others = [file for other in programs for file in other.files]
                what = f"round {turn}, {state}, {program.name}"
                try:
                    run = _one_turn(program, others, task, cap_bytes)
                except ProgramError as error:
                    print(f"{what}: {error}", file=sys.stderr)
                    continue
                last[program.name] = run
                found = {
                    f"prefill {task.prefill}, {state}": run.prefill,
                    f"decode {task.decode}, {state}": run.decode,
                }
                for name, values in found.items():
                    speeds.setdefault(name, {}).setdefault(program.name, []).extend(values)
                print(f"{what}: {_told(found)}", file=sys.stderr)
    return speeds, last


def _told(found: Mapping[str, Sequence[float]]) -> str:
    measures = (f"{name} {max(values):.2f}" for name, values in found.items() if values)
    return f"{'; '.join(measures)} tokens/s"


def _one_turn(program: Program, files: Sequence[Path], task: Task, cap_bytes: int | None) -> Run:
    """Run a program with its own files in the page cache, or with none when cold or capped."""
    if cap_bytes is None and task.warm_up:
        if not _all_fit(files):
            page_cache.drop([path for path in files if path not in program.files])
        page_cache.bring_in(program.files)
        return run_once(program, task)
    page_cache.drop(files)
    if cap_bytes is None:
        return run_once(program, task)
    # Pages in memory before the process began would be charged to nobody.
    with make_memory_group(cap_bytes) as group:
        return run_once(program, task, group)


def _all_fit(files: Sequence[Path]) -> bool:
    """Whether every file may stay while a program holds a copy of one of them."""
    sizes = [path.stat().st_size for path in set(files)]
    return sum(sizes) + max(sizes) < available_bytes() * _SHARE_TO_FILL
