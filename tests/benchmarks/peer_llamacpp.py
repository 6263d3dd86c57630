"""kandiga and llama.cpp on one shape, one machine, in turns. A program, not a test.

    python -m kandiga_pack synth qwen3.5-35b-a3b MODEL --layers 12
    PYTHONPATH=tests python tests/benchmarks/peer_llamacpp.py MODEL --gguf MODEL.gguf \\
        --llama-bench '/path/to/ik_llama.cpp/build/bin/llama-bench -rtr 1' \\
        --llama-cpp-python /path/to/python [--cap 4GB]

The GGUF is written from the container's config when it is not there: the same tensors, 4.5 bits a
weight (Q4_0). Programs take turns, every turn is a process of its own, nothing else of the model
is in memory meanwhile. Tokens are random and none is sampled, as in llama-bench, whose prompt and
answer both begin with an empty context.

Warm: the file is in the page cache and one prompt and token were computed before. Cold: the file is
not in the page cache; its speeds are those of the first prompt and the first answer. With a cap the
process runs in a memory control group: page cache counts, and begins empty; ours is given the same
budget as --memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.peers.gguf_shapes import UnknownShapeError
from benchmarks.peers.programs import (
    Kandiga,
    LlamaBench,
    LlamaCppPython,
    Program,
    ProgramError,
)
from benchmarks.peers.rounds import measure
from benchmarks.peers.synthetic_gguf import write_gguf
from benchmarks.peers.table import Median, markdown_table, to_json
from benchmarks.peers.task import Task
from kandiga_run.bench.memory_group import make_memory_group
from kandiga_run.bench.session import engine_memory
from kandiga_run.errors import RunError
from kandiga_run.sizes import parse_size


def programs_of(
    model: Path,
    gguf: Path,
    ours: Sequence[str],
    benches: Sequence[str],
    pythons: Sequence[str],
    cap_bytes: int | None,
) -> list[Program]:
    """Return every program asked for, ours first; ProgramError for one that is not there."""
    budget = {} if cap_bytes is None else {"memory_bytes": engine_memory(cap_bytes)}
    found: list[Program] = []
    for words in ours or [""]:
        options = options_of(words)
        is_mapped = options.get("residency") == "mapped"
        found.append(Kandiga(model, options if is_mapped else {**budget, **options}))
    found += [LlamaBench(gguf, command_line) for command_line in benches]
    found += [
        LlamaCppPython(gguf, python, repack=repack)
        for python in pythons
        for repack in (True, False)
    ]
    return found


def options_of(words: str) -> dict[str, str | int]:
    """Return load_engine's options of "arithmetic=int8 memory_bytes=2000000000"."""
    pairs = (word.partition("=") for word in words.split())
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs}


def check_cap(cap_bytes: int | None) -> None:
    """Raise UsageError where no control group can be made."""
    if cap_bytes is not None:
        try:
            make_memory_group(cap_bytes).remove()
        except RunError as error:
            raise click.UsageError(f"--cap: {error}") from error


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--gguf", type=click.Path(path_type=Path), required=True, help="Written if missing.")
@click.option("--ours", multiple=True, metavar="OPTIONS", help="Of load_engine, as name=value ...")
@click.option("--llama-bench", "benches", multiple=True, metavar="COMMAND", help="Path, options.")
@click.option("--llama-cpp-python", "pythons", multiple=True, metavar="PYTHON")
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--prefill", default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--decode", default=64, show_default=True, help="Tokens of the answer.")
@click.option("--repetitions", default=2, show_default=True, help="Of a warm process.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--cold/--no-cold", default=False, help="Measure with a cold page cache, too.")
@click.option("--cap", help="Memory of a process, such as 4GB.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures there.")
def main(
    model: Path,
    gguf: Path,
    ours: tuple[str, ...],
    benches: tuple[str, ...],
    pythons: tuple[str, ...],
    threads: int,
    prefill: int,
    decode: int,
    repetitions: int,
    rounds: int,
    cold: bool,
    cap: str | None,
    json_path: Path | None,
) -> None:
    """Print a table of medians and what ours are in multiples of each peer's."""
    cap_bytes = parse_size(cap) if cap else None
    check_cap(cap_bytes)
    try:
        programs = programs_of(model, gguf, ours, benches, pythons, cap_bytes)
        if not gguf.exists():
            print(f"writing {gguf}", file=sys.stderr)
            write_gguf(model, gguf)
    except (ProgramError, UnknownShapeError) as error:
        raise click.UsageError(str(error)) from error
    state = f"cap {cap}" if cap else "warm"
    tasks = {state: Task(threads, prefill, decode, repetitions, warm_up=True)}
    if cold:
        tasks[f"cold, {cap}" if cap else "cold"] = Task(threads, prefill, decode, 1, warm_up=False)
    speeds, last = measure(programs, tasks, rounds, cap_bytes)
    results = {
        name: {program.name: Median.of(found.get(program.name, [])) for program in programs}
        for name, found in speeds.items()
    }
    print(f"{model.name}, {threads} threads, {state}; tokens/s: median (least-most)\n")
    print(markdown_table(results, ours=[p.name for p in programs if isinstance(p, Kandiga)]))
    if json_path:
        about = {name: vars(run) for name, run in last.items()}
        figures = {"speeds": speeds, "medians": to_json(results), "last_runs": about}
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
