"""kandiga-pack killed at a chosen moment, by a real SIGKILL.

`Killer` keeps a process that has imported the program; each run is a fork of it, so that fifty take
seconds. The moment is a time, or the n-th of the calls by which a program changes a disk.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

# Every change to the disk that convert makes goes through one of these.
OPERATIONS = (
    "fdatasync",
    "fsync",
    "ftruncate",
    "mkdir",
    "pwrite",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "unlink",
)


class Killer:
    """A context manager; `run` returns how the fork ended."""

    def __enter__(self) -> "Killer":
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        assert self._server.wait(60) == 0
        assert self._server.stdout is not None
        self._server.stdout.close()

    def run(
        self,
        arguments: Sequence[str],
        *,
        operation: int | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Run kandiga-pack, killed before its n-th operation or after so many seconds.

        Returns:
            {"status": exit status or minus the signal, "operations": how many it made if it ended
            by itself, "seconds"}.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = {"arguments": list(arguments), "operation": operation, "seconds": seconds}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer


def _kill_before(operation: int | None) -> Callable[[], int]:
    """Count operations and die before the one of that number; return what tells the count."""
    lock = threading.Lock()
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            nonlocal count
            with lock:
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            return call(*args, **options)

        return wrapper

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: count


def _child(order: dict[str, Any], report: int) -> None:
    from kandiga_pack.cli import run

    made = _kill_before(order["operation"])
    status = run([*order["arguments"], "--quiet"])
    os.write(report, str(made()).encode())
    os._exit(status)


def _serve() -> None:
    import kandiga_pack.cli  # noqa: F401 - so that each fork has it

    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                _child(order, writer)
            finally:
                os._exit(99)
        os.close(writer)
        if order["seconds"] is not None:
            time.sleep(order["seconds"])
            os.kill(child, signal.SIGKILL)  # it is not waited for yet, so the number is its own
        _, status = os.waitpid(child, 0)
        made = os.read(reader, 32)
        os.close(reader)
        answer = {
            "status": os.waitstatus_to_exitcode(status),
            "operations": int(made or 0),
            "seconds": time.monotonic() - started,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
