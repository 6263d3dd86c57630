"""The folder beside DEST in which DEST is made: one process at a time, kept when interrupted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from formats.errors import os_errors
from kandiga_pack.errors import PackError
from kandiga_pack.journal import Journal

WEIGHTS_SUFFIX = ".safetensors"


class Workspace:
    """`DEST.partial`; a context manager.

    Its name follows from DEST, so that the same command finds it again. It holds

        lock       locked by the process at work, whose number is in it
        journal    what is done
        set/       what becomes DEST
        source/    the checkpoint while its files come and go
        downloads/ those that come from the Hub, by commit

    It goes when DEST is there, and when there is nothing in it worth keeping.
    """

    def __init__(self, dest: Path) -> None:
        self.dest = dest
        self.folder = dest.with_name(f"{dest.name}.partial")
        self.set_folder = self.folder / "set"
        self.source_folder = self.folder / "source"
        self.downloads_folder = self.folder / "downloads"
        self.is_done = False
        self._lock_fd = -1

    def __enter__(self) -> Workspace:
        with os_errors(self.folder, "created"):
            self._lock()
            try:
                self.journal = Journal(self.folder / "journal")
            except BaseException:
                os.close(self._lock_fd)
                raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self.is_kept:
            error.add_note(
                f"what is done is kept in {self.folder}: run the same command to go on, or with "
                "--restart to begin anew"
            )
        self.journal.close()
        if self.is_done or not self.is_kept:
            self._remove()
        os.close(self._lock_fd)

    @property
    def is_kept(self) -> bool:
        """Whether an interruption now would leave work that the same command takes up."""
        return self.journal.has_work or any(self.folder.glob(f"downloads/*/*{WEIGHTS_SUFFIX}"))

    @property
    def exists(self) -> bool:
        """Whether an earlier run, or one at work, has made it."""
        return self.folder.exists()

    def clear(self) -> None:
        """Remove everything that an earlier run left."""
        for folder in (self.set_folder, self.source_folder, self.downloads_folder):
            shutil.rmtree(folder, ignore_errors=True)

    def clear_set(self) -> None:
        """Remove what an earlier run has packed."""
        shutil.rmtree(self.set_folder, ignore_errors=True)

    def _remove(self) -> None:
        """Remove the folder, the lock last: whoever waits for it finds that it is gone."""
        self.clear()
        with contextlib.suppress(OSError):
            (self.folder / "journal").unlink()
            (self.folder / "lock").unlink()
            self.folder.rmdir()

    def _lock(self) -> None:
        path = self.folder / "lock"
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # the other process has just finished
                continue
            try:
                # The kernel drops it with the process: a lock left behind by a dead one is none.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise PackError(
                    f"{self.dest}: another kandiga-pack (process {holder}) is writing it; wait "
                    "for it, stop it, or name another destination"
                ) from error
            if _is_still(path, fd):
                break
            os.close(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._lock_fd = fd


def _is_still(path: Path, fd: int) -> bool:
    """Whether the locked file is the one in the folder, and not one removed meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
