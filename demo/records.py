"""Which results under the work folder are complete, and of which inputs.

A result is a folder that is written under another name and renamed when it is whole. The record
beside it is written after the rename, so a record without its whole result cannot exist; it lists
the inputs and every file's size and time of change, so that another input, another version of the
code or a touched file means the step is done again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def is_complete(result: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `result` is whole and was made from `inputs` (JSON values)."""
    try:
        record = json.loads(_record_path(result).read_text())
    except (OSError, ValueError):
        return False
    return record == {"files": _files(result), "inputs": dict(inputs)}


@contextmanager
def making(result: Path, inputs: Mapping[str, Any]) -> Iterator[Path]:
    """Give a path to make `result` under; when the block ends well, rename and record it.

    What was there before goes first: the disk need not hold two. A block that fails or is
    interrupted leaves nothing.
    """
    _record_path(result).unlink(missing_ok=True)
    partial = result.with_name(f"{result.name}.partial")
    _remove(result)
    _remove(partial)
    try:
        yield partial
        partial.rename(result)
    except BaseException:
        _remove(partial)
        raise
    text = json.dumps({"files": _files(result), "inputs": dict(inputs)}, indent=2)
    temporary = _record_path(partial)
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


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
