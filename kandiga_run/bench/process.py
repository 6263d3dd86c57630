"""Starting a measuring process and hearing what it has to say."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from kandiga_run.bench.memory_group import MemoryGroup
from kandiga_run.bench.request import Request
from kandiga_run.bench.samples import Figure, add_sample, sample_from

#: what is being measured, how many of its samples are taken, of how many
Progress = Callable[[str, int, int], None]

# -P: in a clone whose package was installed elsewhere, the folder here holds no kernels.
_COMMAND = (sys.executable, "-P", "-m", "kandiga_run.bench.child")


@dataclass
class Heard:
    """What one measuring process has told; true at every moment, complete when `finished`."""

    request: Request
    figures: list[Figure] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    #: work of a token, by depth
    work: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: memory at the last look, peaks included
    memory: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    finished: bool = False
    error: str | None = None

    def hear(self, event: dict[str, Any]) -> None:
        """Take one event in."""
        match event.pop("event"):
            case "sample":
                add_sample(self.figures, sample_from(event))
            case "start":
                self.start = event
            case "engine":
                self.engine = event
                self.work[0] = event["work"]
            case "work":
                self.work[event.pop("depth")] = event
            case "memory":
                self.memory = event
            case "note":
                self.notes.append(event["text"])
            case "error":
                self.error = event["line"]
            case "finished":
                self.finished = True


def run_request(
    heard: Heard,
    progress: Progress,
    group: MemoryGroup | None,
    stderr: int | None = None,
    timeout_seconds: float | None = None,
) -> None:
    """Start a process for `heard.request` and let `heard` fill, until the process has ended.

    group: the control group the process joins. stderr: where its other output goes. When this is
    interrupted, and after `timeout_seconds`, the process is ended.
    """
    group_file = str(group.processes_file) if group else None
    request = replace(heard.request, started_ns=time.monotonic_ns(), group_file=group_file)
    with _started(request, stderr) as process, _ended_after(process, timeout_seconds) as is_late:
        for event in _events(process):
            if event["event"] == "progress":
                progress(event["what"], event["done"], event["total"])
            else:
                heard.hear(event)
    if is_late.is_set() and not heard.finished:
        heard.error = f"not done after {timeout_seconds:.0f} seconds"
    if not heard.finished and heard.error is None:
        heard.error = _end_of(process.returncode, group)


@contextmanager
def _started(request: Request, stderr: int | None) -> Iterator[subprocess.Popen[str]]:
    # A session of its own: Ctrl-C on the terminal is for us, who then end the process in order.
    with subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdin
            try:
                process.stdin.write(request.to_json() + "\n")
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended; its exit status says how
            yield process
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


@contextmanager
def _ended_after(
    process: subprocess.Popen[str], seconds: float | None
) -> Iterator[threading.Event]:
    """End the process after some seconds within the block; yield what is set when that happens."""
    is_late = threading.Event()
    if seconds is None:
        yield is_late
        return

    def end() -> None:
        is_late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield is_late
    finally:
        timer.cancel()


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout
    for line in process.stdout:
        if line.endswith("\n"):  # a process that is killed may leave half of one
            yield json.loads(line)


def _end_of(returncode: int, group: MemoryGroup | None) -> str:
    """Return why a process ended that said nothing about it."""
    if returncode >= 0:
        return f"the measuring process ended with status {returncode} before it was done"
    name = signal.Signals(-returncode).name
    if group is not None and group.use().oom_kills:
        return f"the measuring process ran out of memory under its cap of {group.limit_bytes} bytes"
    return f"the measuring process was ended by {name}"
