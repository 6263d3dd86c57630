"""Which results under the work folder are complete, and of which inputs.

A result is a folder that gets its name when it is whole. The record beside it is written after
that, so a record without its whole result cannot exist; it lists the inputs and every file's size
and time of change, so that another input, another version of the code or a touched file means the
step is done again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def is_complete(result: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `result` is whole and was made from `inputs` (JSON values)."""
    found: dict[str, Any] | None = record_of(result)
    return found == {"files": _files(result), "inputs": dict(inputs)}


def record_of(result: Path) -> Any:
    """The record beside `result`, None where there is none: an input for the next step."""
    try:
        return json.loads(_record_path(result).read_text())
    except (OSError, ValueError):
        return None


def forget(result: Path) -> None:
    """Remove a result that is not complete, its record first; or what stands in its place."""
    _record_path(result).unlink(missing_ok=True)
    if result.is_dir() and not result.is_symlink():
        shutil.rmtree(result)
    else:
        result.unlink(missing_ok=True)


def record(result: Path, inputs: Mapping[str, Any]) -> None:
    """Say that `result` stands, whole, under its final name."""
    text = json.dumps({"files": _files(result), "inputs": dict(inputs)}, indent=2)
    temporary = _record_path(result).with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(_record_path(result))


def code_digest(roots: Iterable[Path]) -> str:
    """Digest of the Python files under `roots`."""
    digest = hashlib.sha256()
    for path in sorted(file for root in roots for file in root.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _record_path(result: Path) -> Path:
    return result.with_name(f"{result.name}.done.json")


def _files(folder: Path) -> dict[str, list[int]]:
    """Relative name -> [size in bytes, time of change in ns]."""
    return {
        str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
