"""Reading a file past the page cache, where the system lets us."""

from __future__ import annotations

import mmap
import os
import sys

if sys.platform == "darwin":
    import fcntl

# fcntl.F_NOCACHE is not exposed by every Python build; macOS fixes it at 48.
_F_NOCACHE = 48


class DirectFile:
    """A file read with O_DIRECT (F_NOCACHE on macOS), or buffered where that is refused.

    Some filesystems accept O_DIRECT at open and refuse the read, so the first read decides.
    Buffered reads drop their pages at once: the slots are the cache, a second one would only take
    memory from them.
    """

    def __init__(self, path: os.PathLike[str], *, direct: bool = True) -> None:
        self._path = path
        self.direct = direct and hasattr(os, "O_DIRECT")
        try:
            flags = os.O_DIRECT if self.direct else 0
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError:
            self.direct = False
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if sys.platform == "darwin":
            fcntl.fcntl(self._fd, _F_NOCACHE, 1)
        if self.direct:
            self._probe()

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill the buffer from the file. OSError when the file ends before.

        For O_DIRECT, address, length and offset are multiples of 4096.
        """
        start, length = offset_bytes, len(buffer)
        while len(buffer):
            count = os.preadv(self._fd, [buffer], offset_bytes)
            if count == 0:
                raise OSError(
                    f"{self._path}: ends at {offset_bytes:#x}, "
                    f"wanted {length} bytes at {start:#x}; was the file truncated while in use?"
                )
            buffer = buffer[count:]
            offset_bytes += count
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def _probe(self) -> None:
        with mmap.mmap(-1, 4096) as page:  # page-aligned, as O_DIRECT asks
            try:
                os.preadv(self._fd, [page], 0)
            except OSError:
                os.close(self._fd)
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                self.direct = False
