"""Processor, kernels, memory."""

from __future__ import annotations

import mmap
import os
import platform
from collections.abc import Iterator

from kandiga_run.doctor.finding import Finding
from kandiga_run.forecast.here import usable_memory_bytes
from kandiga_run.machine.facts import cpu_name, huge_page_setting
from kandiga_run.memory.use import available_bytes, memory_use, physical_bytes
from kandiga_run.sizes import format_size

# Below this not even the smallest of the known models runs.
_LITTLE_MEMORY_BYTES = 2 * 10**9


def look_at_processor() -> Iterator[Finding]:
    """Say what computes, and with which kernels. Raises ImportError when they cannot be loaded."""
    from cython_kernels import available_isas, cpu_count, isa

    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    cpus = cpu_count()
    facts = {"name": cpu_name(), "processors": cpus, "system": system}
    yield Finding("processor", "ok", f"{cpu_name()}, {cpus} for us; {system}", facts=facts)
    chosen, available = isa(), available_isas()
    forced = os.environ.get("KANDIGA_ISA")
    why = f"forced by KANDIGA_ISA={forced}" if forced else f"the best of {', '.join(available)}"
    facts = {"chosen": chosen, "available": list(available), "forced": forced}
    if chosen == "scalar" or (forced and chosen != available[-1]):
        advice = "unset KANDIGA_ISA" if forced else "no faster kernels for this processor"
        yield Finding("kernels", "warning", f"{chosen}: {why}", advice, facts)
    else:
        yield Finding("kernels", "ok", f"{chosen}: {why}", facts=facts)


def look_at_memory() -> Iterator[Finding]:
    """Say how much memory there is, what limits it, and what an engine would take."""
    use = memory_use()
    total, available, limit = physical_bytes(), available_bytes(), use.cgroup_limit_bytes
    limited = f", limited to {format_size(limit)} by a control group" if limit else ""
    text = (
        f"{format_size(total)}, {format_size(available)} free{limited}; an engine without --memory "
        f"plans with {format_size(usable_memory_bytes())}"
    )
    facts = {"total_bytes": total, "available_bytes": available, "cgroup_limit_bytes": limit}
    if available < _LITTLE_MEMORY_BYTES:
        advice = "close other programs: less than 2 GB is free"
        yield Finding("memory", "warning", text, advice, facts)
    else:
        yield Finding("memory", "ok", text, facts=facts)
    yield _pages()


def _pages() -> Finding:
    setting = huge_page_setting()
    size = mmap.PAGESIZE
    facts = {"page_bytes": size, "transparent_huge_pages": setting}
    text = f"{size // 1024} KiB; transparent huge pages: {setting or 'the system has none'}"
    if setting == "never":
        advice = (
            "huge pages make the weights a third faster to read: "
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        )
        return Finding("pages", "warning", text, advice, facts)
    return Finding("pages", "ok", text, facts=facts)
