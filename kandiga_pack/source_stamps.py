"""Notice that a weight file is another one than when it was opened."""

from __future__ import annotations

import os
from pathlib import Path

from kandiga_pack.errors import PackError


class SourceStamps:
    """Size, time of change and inode of weight files, compared from time to time.

    A change within the clock's step that keeps the size goes unseen here; the digest of the whole
    file, taken while packing, is recorded in the container for `verify --against`.
    """

    def __init__(self) -> None:
        self._stamps: dict[str, tuple[Path, os.stat_result]] = {}

    def take(self, name: str, path: Path) -> None:
        """Remember a file as it is; UnreadableError is for whoever opens it."""
        self._stamps.setdefault(name, (path, path.stat()))

    def drop(self, name: str) -> None:
        """Forget a file, which is to be freed."""
        self._stamps.pop(name, None)

    def check(self) -> None:
        """Raise PackError if one of the files is not the one remembered."""
        for path, before in self._stamps.values():
            try:
                after = path.stat()
            except FileNotFoundError:
                raise PackError(f"{path}: removed while it was being packed") from None
            if _facts(before) != _facts(after):
                raise PackError(
                    f"{path}: changed while it was being packed ({_describe(before)} -> "
                    f"{_describe(after)}); run the command again when nobody writes to it"
                )


def identity(path: Path) -> list[int]:
    """Return [size, time of change in ns]: what tells that a file is as it was an hour ago.

    Without the inode: some network and user-space file systems give another one after each mount.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _describe(status: os.stat_result) -> str:
    return f"{status.st_size} bytes, inode {status.st_ino}, time {status.st_mtime_ns}"
