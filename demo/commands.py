"""Run the project's own commands as a user would, showing the line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console

CLEAN_UP_SECONDS = 10


class CommandFailedError(Exception):
    """A command ended with another code than 0; it has said why itself."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(f"`{line}` ended with exit code {exit_code}")
        self.exit_code = exit_code


def run_command(console: Console, program: str, *arguments: str | Path, keep: bool = False) -> str:
    """Print and run a command of this environment; return its standard output if `keep`.

    Raises:
        CommandFailedError: it failed.
    """
    words = [str(argument) for argument in arguments]
    line = shlex.join([program, *(_shown(word) for word in words)])
    console.print(f"[bold]$ {line}[/bold]", highlight=False, soft_wrap=True)
    installed = Path(sys.executable).with_name(program)
    process = subprocess.Popen(
        [str(installed), *words], stdout=subprocess.PIPE if keep else None, text=True
    )
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        _let_it_clean_up(process)
        raise
    if process.returncode:
        raise CommandFailedError(line, process.returncode)
    return output or ""


def _let_it_clean_up(process: subprocess.Popen[str]) -> None:
    """Wait for a command that Ctrl-C has reached as well; subprocess.run would kill it after a
    quarter of a second, in the middle of removing what it had half written."""
    try:
        process.wait(timeout=CLEAN_UP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def _shown(word: str) -> str:
    """A path below the current folder as the user would type it."""
    path = Path(word)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return word
