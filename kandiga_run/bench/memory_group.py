"""A control group that limits the memory of a measurement, page cache included.

Both hierarchies: v1 (memory.limit_in_bytes, memory.memsw.limit_in_bytes) and v2 (memory.max,
memory.swap.max). A group is made below the one this process is in; under v2 that is often
forbidden, since a group with processes may not divide its memory among children, so the groups
above are tried too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kandiga_run.errors import RunError

_PREFIX = "kandiga-bench-"
_REMOVE_SECONDS = 5.0


@dataclass(frozen=True)
class GroupUse:
    """What the kernel counted in a group. None where this version of control groups is silent."""

    limit_bytes: int
    usage_bytes: int
    peak_bytes: int | None
    #: pages of files, and anonymous memory, within `usage_bytes`
    file_bytes: int | None
    anonymous_bytes: int | None
    swap_bytes: int | None
    #: times an allocation met the limit and the kernel had to take something back
    limit_hits: int | None
    oom_kills: int | None

    @property
    def met_limit(self) -> bool | None:
        """Whether usage was ever at the limit; None when the kernel does not say.

        By the peak too: the counters of version 1 stay at 0 in Linux 6.18, whatever happens.
        """
        if self.limit_hits:
            return True
        return None if self.peak_bytes is None else self.peak_bytes >= self.limit_bytes


class MemoryGroup:
    """A group with a limit. Use it in a `with`: leaving removes it."""

    def __init__(self, path: Path, version: int, limit_bytes: int, swap_limited: bool) -> None:
        self.path, self.version = path, version
        self.limit_bytes = limit_bytes
        #: Whether memory and swap together are limited, so that swapping is no way out.
        self.swap_limited = swap_limited

    @property
    def processes_file(self) -> Path:
        """Return the file a process writes its id to in order to join."""
        return self.path / "cgroup.procs"

    def __enter__(self) -> MemoryGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def use(self) -> GroupUse:
        """Return what is counted at this moment."""
        return self._use_v1() if self.version == 1 else self._use_v2()

    def remove(self) -> None:
        """Remove the group; its processes must have ended. Removing twice is harmless."""
        _remove(self.path)

    def _use_v1(self) -> GroupUse:
        stat = _fields(self.path / "memory.stat")
        control = _fields(self.path / "memory.oom_control")
        # With both limits equal the kernel meets that of memory and swap together first, and
        # counts it there.
        hits = [_number(self.path / f"memory.{name}failcnt") for name in ("", "memsw.")]
        return GroupUse(
            limit_bytes=self.limit_bytes,
            usage_bytes=_number(self.path / "memory.usage_in_bytes") or 0,
            peak_bytes=_number(self.path / "memory.max_usage_in_bytes"),
            file_bytes=stat.get("cache"),
            anonymous_bytes=stat.get("rss"),
            swap_bytes=stat.get("swap"),
            limit_hits=sum(count or 0 for count in hits),
            oom_kills=control.get("oom_kill"),
        )

    def _use_v2(self) -> GroupUse:
        stat, events = _fields(self.path / "memory.stat"), _fields(self.path / "memory.events")
        return GroupUse(
            limit_bytes=self.limit_bytes,
            usage_bytes=_number(self.path / "memory.current") or 0,
            peak_bytes=_number(self.path / "memory.peak"),
            file_bytes=stat.get("file"),
            anonymous_bytes=stat.get("anon"),
            swap_bytes=_number(self.path / "memory.swap.current"),
            limit_hits=events.get("max"),
            oom_kills=events.get("oom_kill"),
        )


def make_memory_group(
    limit_bytes: int, *, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> MemoryGroup:
    """Return a new group with this limit. RunError says why there can be none.

    root, own: where control groups are mounted, and the file that names those of this process.
    """
    reasons = []
    for parent, version in _parents(root, own):
        _remove_leftovers(parent)
        path = parent / f"{_PREFIX}{os.getpid()}-{time.monotonic_ns()}"
        try:
            return _make(path, version, limit_bytes)
        except OSError as error:
            _remove(path)
            reasons.append(f"{parent}: {error.strerror}")
    where = "; ".join(reasons) or "no memory controller is mounted under /sys/fs/cgroup"
    raise RunError(
        f"no memory control group can be made here ({where}); root may, and so may "
        f"systemd-run --user --scope -p MemoryMax={limit_bytes} -p MemorySwapMax=0 kandiga-run ..."
    )


def _make(path: Path, version: int, limit_bytes: int) -> MemoryGroup:
    path.mkdir()
    if version == 2:
        if not (path / "memory.max").exists():
            raise OSError(0, "the memory controller is not given to its children")
        (path / "memory.max").write_text(str(limit_bytes))
        swap_limited = _written(path / "memory.swap.max", "0")
        return MemoryGroup(path, version, limit_bytes, swap_limited)
    (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
    swap_limited = _written(path / "memory.memsw.limit_in_bytes", str(limit_bytes))
    _written(path / "memory.swappiness", "0")
    return MemoryGroup(path, version, limit_bytes, swap_limited)


def _written(path: Path, text: str) -> bool:
    """Return whether a file exists and took the text: kernels without swap accounting lack it."""
    if not path.exists():
        return False
    with suppress(OSError):
        path.write_text(text)
        return True
    return False


def _parents(root: Path, own: Path) -> Iterator[tuple[Path, int]]:
    """Yield (folder, version) in which a group may be made, the nearest first."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield from ((folder, 1) for folder in _upwards(root / "memory", name))
            elif not controllers:
                v2_root = root if (root / "cgroup.controllers").exists() else root / "unified"
                yield from ((folder, 2) for folder in _upwards(v2_root, name) if _divides(folder))


def _upwards(root: Path, name: str) -> Iterator[Path]:
    """Yield the group's folder and those above; inside a container its own path may be missing."""
    folder = root / name.strip("/")
    while folder.is_relative_to(root):
        if (folder / "cgroup.procs").exists():
            yield folder
        folder = folder.parent


def _divides(folder: Path) -> bool:
    """Whether children of this v2 group may have memory limits, after asking for it."""
    control = folder / "cgroup.subtree_control"
    with suppress(OSError):
        if "memory" in control.read_text().split():
            return True
        if "memory" in (folder / "cgroup.controllers").read_text().split():
            control.write_text("+memory")
            return True
    return False


def _remove_leftovers(parent: Path) -> None:
    """Remove groups of measurements that were killed before they could."""
    for path in parent.glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove(path)


def _remove(path: Path) -> None:
    deadline = time.monotonic() + _REMOVE_SECONDS
    while path.exists():
        with suppress(OSError):
            # v1 only: else the page cache stays charged to a group that nobody sees any more.
            if (path / "memory.force_empty").exists():
                (path / "memory.force_empty").write_text("0")
        try:
            path.rmdir()
        except OSError:
            # A process that was just killed is still leaving.
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the `name number` lines of a file; empty when it is missing."""
    with suppress(OSError):
        lines = (line.split() for line in path.read_text().splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) == 2}
    return {}
