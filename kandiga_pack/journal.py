"""What an interrupted conversion has done, in a file that survives it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from formats import KexpError, ShardCheckpoint
from formats.durable import flush_folder, flush_to_disk, write_at
from formats.errors import os_errors

Record = dict[str, Any]


class Journal:
    """A file of lines, each written and flushed before what it allows is done.

    A line is the CRC-32 of a JSON object, and the object. What follows the first line that is not
    whole, which a crash may leave, is cut off. The format is this program's own and no part of
    .kexp: a conversion begun by another version starts anew.

    Attributes:
        request: what was asked for, None if nothing was begun.
        checkpoints: the last one of each shard.
        groups: weight files whose dense tensors are on the disk.
        digests: SHA-256 of weight files that were read to the end.
        freed: weight files that are gone, or about to go.
        set_root: of the finished set, None before it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clear()
        with os_errors(path, "opened"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            data = path.read_bytes()
        self._end = 0
        for line in data.splitlines(keepends=True):
            record = _parse(line)
            if record is None:
                break
            self._apply(record)
            self._end += len(line)

    def _clear(self) -> None:
        self._is_appending = False
        self.request: Record | None = None
        self.checkpoints: dict[int, ShardCheckpoint] = {}
        self.groups: set[str] = set()
        self.digests: dict[str, str] = {}
        self.freed: set[str] = set()
        self.set_root: str | None = None

    @property
    def has_work(self) -> bool:
        """Whether anything was done that would have to be done again."""
        return bool(self.checkpoints or self.freed or self.set_root or self._is_appending)

    def forget(self) -> None:
        """Empty the file."""
        self._clear()
        self._end = 0
        with os_errors(self._path, "written"):
            os.ftruncate(self._fd, 0)

    def begin(self, request: Record) -> None:
        """Forget everything, and write down what is asked for."""
        self._clear()
        self._end = 0
        self._append({"kind": "begin", "request": request})
        with os_errors(self._path, "written"):
            flush_folder(self._path.parent)

    def checkpoint(self, shards: Iterable[ShardCheckpoint], groups: Iterable[str]) -> None:
        """Add what is on the disk: experts, and weight files by their dense tensors."""
        self._append(
            {
                "kind": "checkpoint",
                "shards": [[each.shard, each.num_rows, each.index_sha256] for each in shards],
                "groups": sorted(groups),
            }
        )

    def hashed(self, name: str, sha256: str) -> None:
        """Add the digest of a weight file."""
        self._append({"kind": "hashed", "file": name, "sha256": sha256})

    def free(self, name: str) -> None:
        """Add a weight file that is to be freed."""
        self._append({"kind": "free", "file": name})

    def ready(self, set_root: str) -> None:
        """Add that the set is whole and is to be renamed."""
        self._append({"kind": "ready", "set_root": set_root})

    def _append(self, record: Record) -> None:
        # Stays set when Ctrl-C comes between the file and the attributes: the file counts.
        self._is_appending = record["kind"] != "begin"
        try:
            self._write(record)
        except KexpError:
            self._is_appending = False
            raise
        self._apply(record)
        self._is_appending = False

    def _write(self, record: Record) -> None:
        text = json.dumps(record, sort_keys=True).encode()
        line = b"%08x %b\n" % (zlib.crc32(text), text)
        with os_errors(self._path, "written"):
            os.ftruncate(self._fd, self._end)
            write_at(self._fd, line, self._end)
            flush_to_disk(self._fd)
        self._end += len(line)

    def _apply(self, record: Record) -> None:
        match record:
            case {"kind": "begin", "request": request}:
                self._clear()
                self.request = request
            case {"kind": "checkpoint", "shards": shards, "groups": groups}:
                self.checkpoints.update({each[0]: ShardCheckpoint(*each) for each in shards})
                self.groups.update(groups)
            case {"kind": "hashed", "file": name, "sha256": sha256}:
                self.digests[name] = sha256
            case {"kind": "free", "file": name}:
                self.freed.add(name)
            case {"kind": "ready", "set_root": set_root}:
                self.set_root = set_root

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _parse(line: bytes) -> Record | None:
    crc, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(text):
        return None
    record: Record = json.loads(text)
    return record
