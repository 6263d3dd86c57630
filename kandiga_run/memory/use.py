"""What the kernel charges this process, and what is left to take.

A process that maps its weights looks small by one counter (anonymous memory) and large by another
(resident set): both are given, and the control group's own figure where there is one, since that is
what a memory limit counts.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
# A cgroup v1 group without a limit reports a number near 2**63 instead of "max".
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class MemoryUse:
    """Memory of this process in bytes; None where the system does not say."""

    resident_bytes: int
    peak_resident_bytes: int
    #: private memory: slots, KV cache, buffers, the interpreter
    anonymous_bytes: int | None
    #: mapped pages of files: weights of a mapped container
    file_bytes: int | None
    #: everything charged to the control group, page cache included
    cgroup_bytes: int | None
    cgroup_limit_bytes: int | None


def memory_use() -> MemoryUse:
    """Return the memory charged to this process at this moment, and its peak."""
    peak = _peak_resident_bytes()
    status = _kilobyte_fields(_PROC / "self/status")
    group = _memory_group()
    return MemoryUse(
        resident_bytes=status.get("VmRSS", peak),
        peak_resident_bytes=status.get("VmHWM", peak),
        anonymous_bytes=status.get("RssAnon"),
        file_bytes=status.get("RssFile"),
        cgroup_bytes=group[0] if group else None,
        cgroup_limit_bytes=group[1] if group else None,
    )


def available_bytes() -> int:
    """Return the memory this process may still take without swapping.

    Page cache that can be dropped counts as available. On systems that do not say (macOS), half
    of the physical memory is assumed: the other half belongs to the desktop.
    """
    info = _kilobyte_fields(_PROC / "meminfo")
    available = info.get("MemAvailable", physical_bytes() // 2)
    group = _memory_group()
    if group and group[1] is not None:
        available = min(available, max(0, group[1] - (memory_use().anonymous_bytes or 0)))
    return available


def physical_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _kilobyte_fields(path: Path) -> dict[str, int]:
    """Return the `Name:  123 kB` lines of a /proc file in bytes; empty when it is missing."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields}


def _memory_group() -> tuple[int, int | None] | None:
    """Return (bytes charged, limit or None) of the control group that holds this process."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            use = _read_group(_CGROUP, name, "memory.current", "memory.max")
        elif "memory" in controllers.split(","):
            use = _read_group(
                _CGROUP / "memory", name, "memory.usage_in_bytes", "memory.limit_in_bytes"
            )
        else:
            continue
        if use:
            return use
    return None


def _read_group(
    root: Path, name: str, usage_file: str, limit_file: str
) -> tuple[int, int | None] | None:
    # Inside a container the group's own path is not mounted: its files are at the root.
    for folder in (root / name.lstrip("/"), root):
        try:
            usage = int((folder / usage_file).read_text())
            limit = (folder / limit_file).read_text().strip()
        except (OSError, ValueError):
            continue
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return usage, None
        return usage, int(limit)
    return None
