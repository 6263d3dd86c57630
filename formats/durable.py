"""Files that are on the disk when we say so."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

_CHUNK_BYTES = 4 << 20


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; one pwrite takes at most 2 GiB on Linux."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def flush_to_disk(fd: int) -> None:
    """fsync; on macOS F_FULLFSYNC, since fsync there leaves the data in the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # not every file system has it
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def flush_folder(path: Path) -> None:
    """Make the folder's own entries (creations, renames) durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Create `path` with `data`, durably."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        flush_to_disk(stream.fileno())


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
