"""What this machine is, and the programs on it, as figures must be quoted with."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kandiga_run.memory.use import physical_bytes


@dataclass(frozen=True)
class Machine:
    """What figures must be quoted with."""

    cpu: str
    num_cpus: int
    memory_bytes: int
    system: str
    isas: tuple[str, ...]
    #: "always", "madvise" or "never"; None where there is no such setting
    transparent_huge_pages: str | None
    #: share of all processors' time that others used just before; None where nobody says
    busy: float | None
    versions: dict[str, str]


def this_machine() -> Machine:
    """Return what this machine is."""
    # Here, so that the rest can be asked where kernels cannot be loaded.
    from cython_kernels import available_isas, cpu_count

    return Machine(
        cpu=cpu_name(),
        num_cpus=cpu_count(),
        memory_bytes=physical_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        isas=available_isas(),
        transparent_huge_pages=huge_page_setting(),
        busy=busy_share(),
        versions={
            "kandiga-kexp": _version("kandiga-kexp"),
            "python": platform.python_version(),
            "numpy": _version("numpy"),
        },
    )


def cpu_name() -> str:
    """Return the processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()  # aarch64 kernels give no name


def busy_share(seconds: float = 0.3) -> float | None:
    """Return the share of processor time in use while this process sleeps.

    Not the load average, which remembers what ended a minute ago.
    """
    before = _processor_ticks()
    time.sleep(seconds)
    after = _processor_ticks()
    if before is None or after is None or sum(after) == sum(before):
        return None
    idle = [ticks[3] + ticks[4] for ticks in (before, after)]  # waiting for a disk is idle, too
    return 1 - (idle[1] - idle[0]) / (sum(after) - sum(before))


def _processor_ticks() -> list[int] | None:
    """Return the first line of /proc/stat: user, nice, system, idle, iowait, irq, ..."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    # Guests are counted in user and nice already.
    return [int(word) for word in line.split()[1:9]]


def huge_page_setting() -> str | None:
    """Return "always", "madvise" or "never"; None where there is no such setting."""
    if sys.platform != "linux":
        return None
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
