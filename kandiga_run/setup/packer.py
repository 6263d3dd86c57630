"""`kandiga-pack` as a process of its own: the packer and the runtime do not import each other."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from kandiga_run.terminal.exit_codes import ExitCode


class StepFailedError(Exception):
    """A process that has said why it failed; what is left to do is to end with its code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def run_packer(*arguments: str, messages: TextIO, quiet: bool) -> None:
    """Run `kandiga-pack`; what it prints goes to `messages`. StepFailedError."""
    extra = ["--quiet"] if quiet else []
    # -P: not what happens to lie in the folder here.
    command = [sys.executable, "-P", "-m", "kandiga_pack", *arguments, *extra]
    run_step(command, messages=messages)


def run_step(command: list[str], *, messages: TextIO, folder: Path | None = None) -> None:
    """Run a command in `folder`. StepFailedError when it does not end well.

    Ctrl-C reaches it as it reaches us. It is left to end in its own way, since it may be writing
    down how far it came.
    """
    messages.flush()
    process = subprocess.Popen(command, stdout=messages.fileno(), cwd=folder)
    interrupted = False
    with _passing_on(signal.SIGTERM, process):
        while process.returncode is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                interrupted = True
    code = process.returncode
    if interrupted and code:
        raise StepFailedError(ExitCode.INTERRUPTED)
    if code:
        # A signal's number below zero is 128 above it to a shell.
        raise StepFailedError(code if code > 0 else 128 - code)
    if interrupted:
        with contextlib.suppress(OSError):
            messages.flush()
        raise KeyboardInterrupt


@contextlib.contextmanager
def _passing_on(number: signal.Signals, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Give a signal to the process, which would go on without us otherwise."""

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(number, pass_on)
    try:
        yield
    finally:
        signal.signal(number, before)
