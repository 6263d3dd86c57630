"""Writing into a file that is there, and not believing that it was written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from formats import KexpError
from formats.durable import flush_folder, flush_to_disk, write_at
from formats.errors import os_errors

_PAGE_BYTES = 4096


class Rewriter:
    """An existing file, or one to be made, brought to its right length and written in places.

    A context manager. `num_bytes` counts what was written.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self.num_bytes = 0
        with os_errors(path, "written"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if os.fstat(self._fd).st_size != size_bytes:
                    os.ftruncate(self._fd, size_bytes)
            except BaseException:
                os.close(self._fd)
                raise

    def __enter__(self) -> Rewriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def put(self, data: bytes, offset_bytes: int) -> None:
        """Write `data`, put it on the disk, and read it back from there.

        Raises:
            KexpError: E_IO if the disk refuses, or gives other bytes than it was given.
        """
        with os_errors(self._path, "written"):
            write_at(self._fd, data, offset_bytes)
            flush_to_disk(self._fd)
            if hasattr(os, "posix_fadvise"):  # not on macOS, where the cache may answer
                os.posix_fadvise(self._fd, offset_bytes, len(data), os.POSIX_FADV_DONTNEED)
            kept = self.read(len(data), offset_bytes)
        self.num_bytes += len(data)
        if kept != data:
            raise KexpError(
                "E_IO",
                "the disk does not keep what is written to it; copy the set to another one",
                file=self._path,
                offset_bytes=offset_bytes,
            )

    def put_differences(self, data: bytes, offset_bytes: int) -> None:
        """Write those pages of `data` that the file has not."""
        kept = self.read(len(data), offset_bytes)
        for at in range(0, len(data), _PAGE_BYTES):
            page = data[at : at + _PAGE_BYTES]
            if kept[at : at + _PAGE_BYTES] != page:
                self.put(page, offset_bytes + at)

    def read(self, length_bytes: int, offset_bytes: int) -> bytes:
        """Return what the file has there, less where it ends or cannot be read."""
        data = b""
        with contextlib.suppress(OSError):
            while len(data) < length_bytes:
                piece = os.pread(self._fd, length_bytes - len(data), offset_bytes + len(data))
                if not piece:
                    break
                data += piece
        return data


class Differences:
    """Chunks that differ from what a file has, held in a temporary file until they are proven.

    A wrong source differs everywhere, and is found wrong only when all of it has been read.
    """

    def __init__(self, target: Rewriter) -> None:
        self._target = target
        self._spool = tempfile.TemporaryFile(prefix="kandiga-repair-")  # noqa: SIM115 closed on exit
        self._places: list[tuple[int, int]] = []

    def __enter__(self) -> Differences:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def note(self, data: bytes, offset_bytes: int) -> None:
        """Keep `data` if the file has other bytes there."""
        if self._target.read(len(data), offset_bytes) != data:
            self._spool.write(data)
            self._places.append((offset_bytes, len(data)))

    def write(self) -> None:
        """Write what was kept."""
        self._spool.seek(0)
        for offset_bytes, length_bytes in self._places:
            self._target.put_differences(self._spool.read(length_bytes), offset_bytes)


def replace_file(path: Path, data: bytes) -> None:
    """Put a whole small file in the place of another, at once."""
    temporary = path.with_name(f".{path.name}.repair-{os.getpid()}")
    with os_errors(path, "written"):
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                flush_to_disk(stream.fileno())
            # The Hub's cache holds links to blobs: the blob is mended, the link stays.
            temporary.replace(path.resolve())
            flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def join(pieces: Iterable[tuple[int, bytes]], length_bytes: int) -> bytes:
    """Lay pieces (offset, bytes) into zeros."""
    block = bytearray(length_bytes)
    for offset, data in pieces:
        block[offset : offset + len(data)] = data
    return bytes(block)
