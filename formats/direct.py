"""Reading a file past the page cache, where the system lets us."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path

# fcntl.F_NOCACHE is not exposed by every Python build; macOS fixes it at 48.
_F_NOCACHE = 48
# Of addresses, lengths and offsets for O_DIRECT: what the strictest disks in use ask for.
DIRECT_ALIGN = 4096


def reopen(path: Path, fd: int, flags: int = 0) -> int:
    """Return another descriptor of the very file that is open as `fd`, with its own flags.

    `path` is where it was; the name may belong to another file by now, or to none.

    Raises:
        OSError: the flags are refused, or the file has no name that could be opened.
    """
    for name in (path, Path(f"/proc/self/fd/{fd}")):
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            other = os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags)
            if os.path.sameopenfile(fd, other):
                return other
            os.close(other)
    raise FileNotFoundError(errno.ENOENT, "the open file has lost its name", str(path))


def aligned_buffer(length_bytes: int) -> memoryview:
    """Return page-aligned anonymous memory, given back when the last view of it goes."""
    return memoryview(mmap.mmap(-1, max(length_bytes, 1)))[:length_bytes]


class DirectFile:
    """An open file read with O_DIRECT (F_NOCACHE on macOS), or buffered where that is refused.

    Some filesystems accept O_DIRECT at open and refuse the read, so the reads decide. Buffered
    reads drop their pages at once: the caller's memory is the cache, a second one would only take
    memory from it.
    """

    def __init__(self, path: Path, fd: int, *, direct: bool = True) -> None:
        """Read the file that is open as `fd`, which the caller keeps open, from `path` if it can.

        direct: False reads through the page cache from the start.
        """
        self._fd = fd
        self._direct_fd = -1
        self._needs_alignment = sys.platform != "darwin"
        if direct:
            with suppress(OSError):
                self._direct_fd = _open_past_cache(path, fd)
        self.direct = self._direct_fd >= 0

    @property
    def fd(self) -> int:
        """Return the descriptor that reads go through, for who reads without this class."""
        return self._direct_fd if self.direct else self._fd

    def drop(self, offset_bytes: int, length_bytes: int) -> None:
        """Take a range out of the page cache again, after a read through `fd` was not direct."""
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset_bytes, length_bytes, os.POSIX_FADV_DONTNEED)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> int:
        """Fill the buffer from the file; return its length, less where the file ends before.

        For O_DIRECT address, length and offset are multiples of DIRECT_ALIGN. Raises OSError.
        """
        done = 0
        while done < len(buffer):
            count = self._read(buffer[done:], offset_bytes + done)
            if count == 0:
                break
            done += count
        self.drop(offset_bytes, done)
        return done

    def _read(self, buffer: memoryview, offset_bytes: int) -> int:
        # After a short read the rest begins anywhere, which O_DIRECT does not take.
        aligned = offset_bytes % DIRECT_ALIGN == 0 and len(buffer) % DIRECT_ALIGN == 0
        if self.direct and (aligned or not self._needs_alignment):
            try:
                return os.preadv(self._direct_fd, [buffer], offset_bytes)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self.direct = False
        return os.preadv(self._fd, [buffer], offset_bytes)

    def close(self) -> None:
        """Close the descriptor made here. Closing twice is harmless."""
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
        self._direct_fd, self.direct = -1, False


def _open_past_cache(path: Path, fd: int) -> int:
    if sys.platform == "darwin":
        import fcntl

        other = reopen(path, fd)
        fcntl.fcntl(other, _F_NOCACHE, 1)
        return other
    return reopen(path, fd, os.O_DIRECT)
