"""What memory and disk of this machine give, measured once and remembered with the date.

The disk is measured in the folder where the model is or will be, with a file of random numbers
when there is none of a model's own: other disks have other speeds.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kandiga_run.machine.facts import busy_share, cpu_name
from kandiga_run.user_files import cache_folder, read_json, write_json

# Large enough that a disk's own cache is a small part of it, written in about a second.
_PROBE_BYTES = 512 << 20
_PIECE_BYTES = 16 << 20
_BLOCK_BYTES = 2 << 20


@dataclass(frozen=True)
class MeasuredCeilings:
    """Bytes a second at best.

    disk: blocks of about an expert's size at random places, several at a time. folder: on whose
    disk. measured_on: a date, ISO 8601. is_direct: false when the page cache may have answered.
    """

    memory: float
    disk: float
    folder: str
    measured_on: str
    is_direct: bool = True
    #: share of the processors that others used just before, None where nobody says
    busy: float | None = None


def cache_file() -> Path:
    """Return the file in which ceilings are remembered."""
    return cache_folder() / "ceilings.json"


def ceilings_for(
    folder: Path, files: Sequence[Path] = (), *, measure: bool = False
) -> MeasuredCeilings:
    """Return the ceilings for models in `folder`, measuring in about five seconds what is unknown.

    files: large files there that may be read instead of one written for the purpose.
    measure: even what is known.
    Raises OSError when the folder's disk cannot be written or read.
    """
    folder = _existing(folder)
    key = f"{_machine()} {folder.stat().st_dev}"
    known = read_json(cache_file())
    if not measure:
        found = _parse(known.get(key))
        if found is not None:
            return found
    measured = _measure(folder, files)
    write_json(cache_file(), {**known, key: asdict(measured)})
    return measured


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _machine() -> str:
    """Return what else than the disk the figures depend on: a home may be shared by machines."""
    return f"{cpu_name()} x{os.cpu_count()}"


def _parse(value: Any) -> MeasuredCeilings | None:
    """Return what the cache holds; None for nothing, or for what another version wrote."""
    try:
        found = MeasuredCeilings(**value)
        is_sane = found.memory > 0 and found.disk > 0 and bool(found.measured_on)
    except TypeError:
        return None
    return found if is_sane else None


def _measure(folder: Path, files: Sequence[Path]) -> MeasuredCeilings:
    from kandiga_run.experts.reader import DEFAULT_NUM_READERS
    from kandiga_run.machine.ceilings import disk_ceiling, memory_ceiling

    busy = busy_share()
    memory = memory_ceiling()
    if files:
        disk = disk_ceiling(files, _BLOCK_BYTES, DEFAULT_NUM_READERS)
    else:
        with tempfile.TemporaryDirectory(prefix=".kandiga-probe-", dir=folder) as temporary:
            probe = _write_probe(Path(temporary) / "probe", folder)
            disk = disk_ceiling([probe], _BLOCK_BYTES, DEFAULT_NUM_READERS)
    return MeasuredCeilings(
        memory=memory.best,
        disk=disk.random,
        folder=str(folder),
        measured_on=datetime.date.today().isoformat(),
        is_direct=disk.direct,
        busy=busy,
    )


def _write_probe(path: Path, folder: Path) -> Path:
    """Write random numbers: a disk that compresses must not find anything to compress."""
    status = os.statvfs(folder)
    room = status.f_bavail * status.f_frsize // 4
    size = max(2 * _PIECE_BYTES, min(_PROBE_BYTES, room // _PIECE_BYTES * _PIECE_BYTES))
    with path.open("wb") as stream:
        for _ in range(size // _PIECE_BYTES):
            stream.write(os.urandom(_PIECE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    return path
