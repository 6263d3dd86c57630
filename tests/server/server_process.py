"""`kandiga-run serve` as a process of its own, on a free port of this machine."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx2

#: A tiny model loads in a second; the machine may be busy with other things.
START_SECONDS = 60


class ServerProcess:
    """A context manager; inside it the server answers at `url`."""

    def __init__(
        self,
        model: Path,
        *options: str,
        env: dict[str, str] | None = None,
        program: Sequence[str | Path] = (sys.executable, "-m", "kandiga_run"),
        cwd: Path | None = None,
    ) -> None:
        self._command = [*program, "serve", str(model), "--port", "0", *options]
        self._env, self._cwd = env, cwd
        self.url = ""
        #: what it printed, line by line
        self.lines: list[str] = []

    def __enter__(self) -> ServerProcess:
        self.process = subprocess.Popen(
            self._command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._env,
            cwd=self._cwd,
        )
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._is_ready.wait(START_SECONDS) or not self.url:
            self.stop(signal.SIGKILL)
            raise AssertionError(f"the server did not start: {self.lines}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(START_SECONDS)
        self._reader.join(START_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    def client(self, **options: object) -> httpx2.Client:
        """Return an HTTP client for this server."""
        return httpx2.Client(base_url=self.url, timeout=START_SECONDS, **options)  # type: ignore[arg-type]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r"is served at (http://\S+)", line):
                self.url = found[1]
                self._is_ready.set()
        self._is_ready.set()
