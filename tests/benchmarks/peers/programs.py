"""How each program is called, and how its answer is read."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.peers.task import Run, Task
from kandiga_run.bench.memory_group import MemoryGroup

TESTS = Path(__file__).resolve().parents[2]


class ProgramError(RuntimeError):
    """A program is not there, or did not do what was asked."""


def start(command: Sequence[str], group: MemoryGroup | None = None) -> str:
    """Run a command to its end, in a control group perhaps; return its standard output.

    Raises ProgramError with the command's last words when it fails.
    """
    if group:
        # The shell joins the group and becomes the program: nothing of it is charged elsewhere.
        join = f'echo $$ > {shlex.quote(str(group.processes_file))} && exec "$@"'
        command = ["sh", "-c", join, "sh", *command]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
    except OSError as error:
        raise ProgramError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        if group and group.use().oom_kills:
            raise ProgramError(f"killed: it needs more than its cap of {group.limit_bytes} bytes")
        raise ProgramError(f"{words[-1][:300]} (exit code {done.returncode})")
    return done.stdout


class Program(ABC):
    """One way to run a model; `name` heads its column."""

    name: str
    #: the files of the model it reads
    files: Sequence[Path]

    @abstractmethod
    def command(self, task: Task) -> list[str]:
        """Return the command that does the task."""

    def parse(self, output: str, task: Task, seconds: float) -> Run:
        """Return what the command found. seconds: how long it ran."""
        lines = output.strip().splitlines()
        if not lines:
            raise ProgramError(f"{self.name}: it printed nothing")
        return Run(**json.loads(lines[-1]))


@dataclass
class Kandiga(Program):
    """Ours. options: what load_engine takes."""

    model: Path
    options: dict[str, Any]

    def __post_init__(self) -> None:
        told = " ".join(f"{key}={value}" for key, value in self.options.items())
        self.name = f"kandiga {told}".strip()
        self.files = sorted(self.model.glob("*.kexp"))

    def command(self, task: Task) -> list[str]:
        asked = {"model": str(self.model), "options": self.options, "task": task.to_dict()}
        return [sys.executable, "-m", "benchmarks.peers.run_ours", json.dumps(asked)]


class LlamaCppPython(Program):
    """llama.cpp as a Python package. python: the interpreter that has it."""

    def __init__(self, gguf: Path, python: str, *, repack: bool) -> None:
        self._python, self._repack = python, repack
        self._gguf = gguf
        self.name = f"llama-cpp-python {'repacked' if repack else 'mapped'}"
        self.files = [gguf]
        output = start([python, "-c", "import llama_cpp; print(llama_cpp.__version__)"])
        self.name += f" {output.strip().splitlines()[-1]}"

    def command(self, task: Task) -> list[str]:
        asked = {
            "model": str(self._gguf),
            "options": {"repack": self._repack},
            "task": task.to_dict(),
        }
        script = Path(__file__).with_name("run_llama_cpp.py")
        return [self._python, str(script), json.dumps(asked)]


class LlamaBench(Program):
    """A llama-bench binary, of llama.cpp or of a fork of it.

    Args:
        gguf: the model.
        command_line: path of the binary and options of its own, variables before it, as in a shell:
            "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 /path/to/llama-bench -rtr 1".

    Raises ProgramError when the binary is missing.
    """

    def __init__(self, gguf: Path, command_line: str) -> None:
        words = shlex.split(command_line)
        self._variables = list(takewhile(lambda word: "=" in word, words))
        binary, *self._options = words[len(self._variables) :] or [command_line]
        self._binary = Path(binary)
        if not os.access(self._binary, os.X_OK):
            raise ProgramError(
                f"{binary}: no such program; build llama-bench of llama.cpp or ik_llama.cpp and "
                "give its path to --llama-bench"
            )
        self._gguf = gguf
        self.files = [gguf]
        self._has_long_options = "--no-warmup" in start([binary, "--help"])
        self.name = " ".join((self._label(), *self._options, *self._variables))

    def _label(self) -> str:
        """Return the folder a build was made in: .../ik_llama.cpp/build/bin/llama-bench."""
        folders = [part for part in self._binary.resolve().parent.parts if part not in _BUILD]
        return folders[-1] if len(folders) > 1 else self._binary.name

    def command(self, task: Task) -> list[str]:
        options = ["-m", str(self._gguf), "-t", str(task.threads), "-o", "json"]
        options += ["-p", str(task.prefill), "-n", str(task.decode), "-r", str(task.repetitions)]
        if not task.warm_up:
            options += ["--no-warmup"] if self._has_long_options else ["-w", "0"]
        return ["env", *self._variables, str(self._binary), *options, *self._options]

    def parse(self, output: str, task: Task, seconds: float) -> Run:
        # Some builds print remarks before the JSON.
        results = json.loads(output[output.index("[\n") :])
        run = Run([], [])
        for result in results:
            times = [nanoseconds / 1e9 for nanoseconds in result.pop("samples_ns")]
            num_tokens = result["n_prompt"] or result["n_gen"]
            speeds = run.prefill if result["n_prompt"] else run.decode
            speeds += [num_tokens / time for time in times]
            seconds -= sum(times)
            run.about = result
        if not task.warm_up:
            run.load_seconds = seconds
        return run


# Folders on the way from a project to its binary.
_BUILD = ("build", "bin")


def run_once(program: Program, task: Task, group: MemoryGroup | None = None) -> Run:
    """Do the task in a process of its own."""
    started = perf_counter()
    output = start(program.command(task), group)
    return program.parse(output, task, perf_counter() - started)
