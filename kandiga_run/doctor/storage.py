"""Folders, free space, reads past the page cache, speed of the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from formats.direct import DIRECT_ALIGN, DirectFile, aligned_buffer
from kandiga_run.doctor.finding import Finding, Look
from kandiga_run.forecast.ceilings import ceilings_for
from kandiga_run.sizes import format_size
from kandiga_run.terminal.output import Output

# The smallest of the known models.
_ROOM_BYTES = 25 * 10**9


def folder_looks(folder: Path, output: Output, *, measure: bool, speed: bool) -> dict[str, Look]:
    """Return what to look at in the folder of models, which may not exist yet."""
    looks: dict[str, Look] = {"models folder": partial(look_at_folder, folder)}
    if speed:
        looks["ceilings"] = partial(look_at_speed, folder, output, measure=measure)
    return looks


def look_at_folder(folder: Path) -> Iterator[Finding]:
    """Say what the models' disk is like. OSError when it cannot be written."""
    nearest = folder
    while not nearest.is_dir():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    kind = filesystem_of(nearest)
    facts = {"folder": str(folder), "free_bytes": free, "filesystem": kind}
    text = f"{folder}: {format_size(free)} free, {kind or 'unknown file system'}"
    if not os.access(nearest, os.W_OK):
        advice = "name another with `kandiga-run setup --folder`, or set XDG_DATA_HOME"
        yield Finding("models folder", "broken", f"{text}; it may not be written to", advice, facts)
        return
    if free < _ROOM_BYTES:
        advice = "the smallest known model takes 25 GB while it is packed"
        yield Finding("models folder", "warning", text, advice, facts)
    else:
        yield Finding("models folder", "ok", text, facts=facts)
    yield _direct_reads(nearest)


def _direct_reads(folder: Path) -> Finding:
    if reads_past_cache(folder):
        text = "past the page cache (O_DIRECT), as --memory wants it"
        return Finding("reads", "ok", text, facts={"direct": True})
    return Finding(
        "reads",
        "warning",
        "through the page cache: this file system refuses O_DIRECT",
        "experts that do not fit into memory are read several times slower; ext4, xfs and APFS on "
        "a local disk are best",
        {"direct": False},
    )


def reads_past_cache(folder: Path) -> bool:
    """Whether files in a folder can be read with O_DIRECT (F_NOCACHE on macOS)."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".kandiga-probe-") as probe:
        probe.write(bytes(DIRECT_ALIGN))
        probe.flush()
        os.fsync(probe.fileno())
        direct = DirectFile(Path(probe.name), probe.fileno())
        try:
            # Some file systems refuse the read and not the opening.
            direct.read_into(aligned_buffer(DIRECT_ALIGN), 0)
            return direct.direct
        finally:
            direct.close()


def filesystem_of(folder: Path) -> str | None:
    """Return the type of a folder's file system, such as "ext4"; None where nobody says."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    device = folder.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    found = [line for line in lines if line.split()[2] == name]
    return found[-1].partition(" - ")[2].split()[0] if found else None


def look_at_speed(folder: Path, output: Output, *, measure: bool) -> Iterator[Finding]:
    """Say what memory and disk give, measuring what nobody measured yet."""
    with output.waiting("measuring memory and disk"):
        measured = ceilings_for(folder, measure=measure)
    text = (
        f"memory {format_size(measured.memory)}/s, disk {format_size(measured.disk)}/s in blocks "
        f"of 2 MB, measured on {measured.measured_on}"
    )
    facts = {
        "memory_bytes_per_second": measured.memory,
        "disk_bytes_per_second": measured.disk,
        "measured_on": measured.measured_on,
    }
    if measured.disk < 500e6:
        advice = "experts will be slow to read: a model that fits into memory is the better choice"
        yield Finding("ceilings", "warning", text, advice, facts)
    else:
        yield Finding("ceilings", "ok", text, facts=facts)
