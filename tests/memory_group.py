"""A memory control group of the kernel's, v1 or v2, to run a command in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """A folder of the kernel's, and the names of its files there."""

    folder: Path
    limit: str
    peak: str

    def run(self, command: list[str], limit_bytes: int) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments as a member from its first byte on."""
        (self.folder / self.limit).write_text(str(limit_bytes))
        enter = f'echo $$ > {self.folder / "cgroup.procs"} && exec "$@"'
        return subprocess.run(
            ["/bin/sh", "-c", enter, "sh", sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    @property
    def peak_bytes(self) -> int:
        """Return the most that was ever charged, page cache included."""
        return int((self.folder / self.peak).read_text())

    @property
    def limit_hits(self) -> int:
        """Return how often the limit had to be kept by taking something away."""
        if (self.folder / "memory.failcnt").exists():
            return int((self.folder / "memory.failcnt").read_text())
        events = (self.folder / "memory.events").read_text().split()
        return int(events[events.index("max") + 1])


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """Make a group; skip the test where that is not permitted."""
    name = f"kandiga-test-{os.getpid()}"
    kinds = (
        (_ROOT / "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        (_ROOT, "memory.max", "memory.peak"),
    )
    for root, limit, peak in kinds:
        group = MemoryGroup(root / name, limit, peak)
        with suppress(OSError):
            group.folder.mkdir()
            if (group.folder / limit).exists() and (group.folder / peak).exists():
                try:
                    yield group
                finally:
                    group.folder.rmdir()
                return
            group.folder.rmdir()
    pytest.skip("no memory control group can be made here")
