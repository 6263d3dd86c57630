"""The file that tuned settings are kept in: $XDG_CONFIG_HOME/kandiga/tuned.json.

    {"version": 1, "tuned": [{"model": {...}, "machine": {...}, "engine": "native",
                              "settings": {...}, "needs_bytes": ..., "measured": {...},
                              "date": "2026-11-23"}]}

Settings are those of one container in one place on one machine: on another disk or with other
weights something else is the fastest. Any of these that differs makes an entry another one's.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cython_kernels import available_isas, cpu_count
from formats.reader import read_manifest
from kandiga_run.errors import RunError
from kandiga_run.machine.facts import cpu_name
from kandiga_run.memory.use import physical_bytes
from kandiga_run.tune.settings import Settings
from kandiga_run.user_files import config_folder, read_json, write_json

VERSION = 1
# Kernels of one version reserve a little more or less memory than those of another.
_MEMORY_STEP_BYTES = 1 << 30


@dataclass(frozen=True)
class Place:
    """What settings were measured for."""

    model: dict[str, str]
    machine: dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    """Settings that were measured to be the fastest."""

    place: Place
    engine: str
    settings: Settings
    #: memory that must be available for them to make sense
    needs_bytes: int
    #: ISO date of the measurement
    date: str
    #: tokens a second of the settings and of the usual ones, for people
    measured: dict[str, Any] = field(default_factory=dict)


def tuned_path() -> Path:
    """Return where the file is, or would be."""
    return config_folder() / "tuned.json"


def place_of(folder: Path) -> Place:
    """Return model and machine of a container. Raises `formats.KexpError` for what is none."""
    folder = folder if folder.is_dir() else folder.parent
    model = {"set_root": read_manifest(folder).set_root, "folder": str(folder.resolve())}
    machine = {
        "id": _machine_id(),
        "cpu": cpu_name(),
        "num_cpus": cpu_count(),
        "memory_gib": round(physical_bytes() / _MEMORY_STEP_BYTES),
        "system": f"{platform.system()} {platform.machine()}",
        "isas": list(available_isas()),
    }
    return Place(model, machine)


def _machine_id() -> str:
    """Return what tells this installation from its twins; empty where the system does not say.

    Not the host's name, which on a laptop changes with the network. Hashed, as machine-id(5) asks.
    """
    try:
        text = Path("/etc/machine-id").read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(b"kandiga-run tune" + text).hexdigest()[:16]


def find_tuned(place: Place, path: Path | None = None) -> Tuned | None:
    """Return what is kept for a model on a machine, None when nothing is.

    Raises RunError for a file that cannot be read as what it should be.
    """
    for entry in _entries(path or tuned_path()):
        if _is_of(entry, place):
            return _tuned(entry, place, path or tuned_path())
    return None


def keep_tuned(tuned: Tuned, path: Path | None = None) -> Path:
    """Keep settings in place of earlier ones of the same model and machine; return the file.

    Raises RunError when the file that is there is not ours to replace, OSError when it cannot be
    written.
    """
    path = path or tuned_path()
    entries = [entry for entry in _entries(path) if not _is_of(entry, tuned.place)]
    entry = asdict(tuned)
    entries.append({**entry.pop("place"), **entry})
    _write(path, entries)
    return path


def forget_tuned(place: Place, path: Path | None = None) -> bool:
    """Remove what is kept for a model on a machine; return whether there was something."""
    path = path or tuned_path()
    entries = _entries(path)
    others = [entry for entry in entries if not _is_of(entry, place)]
    if len(others) < len(entries):
        _write(path, others)
    return len(others) < len(entries)


def check_writable(path: Path | None = None) -> None:
    """Raise RunError or OSError when settings could not be kept: better before than after."""
    path = path or tuned_path()
    _entries(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    document = read_json(path)
    if document.get("version") != VERSION:
        raise _unusable(path, f"version {document.get('version')!r}, wanted {VERSION}")
    entries = document.get("tuned")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _unusable(path, 'no list "tuned" of objects')
    return entries


def _is_of(entry: dict[str, Any], place: Place) -> bool:
    return entry.get("model") == place.model and entry.get("machine") == place.machine


def _tuned(entry: dict[str, Any], place: Place, path: Path) -> Tuned:
    try:
        settings = Settings(**entry["settings"])
        _check(settings, entry)
        return Tuned(
            place,
            str(entry["engine"]),
            settings,
            entry["needs_bytes"],
            str(entry["date"]),
            dict(entry.get("measured") or {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        folder = place.model["folder"]
        raise _unusable(path, f"the entry of {folder} is damaged ({error!r})") from error


def _check(settings: Settings, entry: dict[str, Any]) -> None:
    """ValueError for settings that no engine would take."""
    if settings.residency not in ("auto", "mapped", "owned"):
        raise ValueError(f"residency {settings.residency!r}")
    numbers = (settings.memory_bytes, settings.num_readers, settings.num_threads)
    for number in numbers:
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"{number!r} is no count")
    if type(entry["needs_bytes"]) is not int:
        raise ValueError(f"needs_bytes {entry['needs_bytes']!r}")


def _unusable(path: Path, reason: str) -> RunError:
    return RunError(f"{path}: {reason}; remove the file and run kandiga-run tune again")


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    write_json(path, {"version": VERSION, "tuned": entries})
