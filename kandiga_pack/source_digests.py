"""SHA-256 of the files a container is made from, computed while it is being written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from typing import Any

from formats.errors import os_errors

_CHUNK_BYTES = 4 << 20
# How far hashing and packing may be apart. What one has read, the other finds in the page cache.
_WINDOW_BYTES = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNKNOWN = "0" * 64

Digests = dict[str, dict[str, Any]]


class SourceDigests:
    """Hashes files in a thread of its own, one after another; a context manager, which stops it.

    It goes through the checkpoint side by side with the packing, so that a checkpoint larger than
    memory is read from the disk once and not twice.

    A file in the Hub's cache is a link to a blob called by its SHA-256, which is taken as it is:
    the Hub's client checked it when it downloaded the file.

    Args:
        sizes: name -> bytes, of every weight file.
        known: name -> digest, of files that were hashed before.
    """

    def __init__(self, sizes: Mapping[str, int], known: Mapping[str, str]) -> None:
        self._sizes = dict(sizes)
        self._known = dict(known)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="source-sha256")
        self._hashes: dict[str, Future[str]] = {}
        self._moved = Condition()
        self._hashed_bytes = self._packed_bytes = 0
        self._positions: dict[str, int] = {}
        self._stop = False
        self._hurry = False

    def __enter__(self) -> SourceDigests:
        return self

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._stop = True
            self._moved.notify_all()
        self._thread.shutdown(cancel_futures=True)

    def placeholder(self) -> Digests:
        """Return {name: {"sha256", "size"}} with digests of the right length, not yet known."""
        return {name: {"sha256": _UNKNOWN, "size": size} for name, size in self._sizes.items()}

    def know(self, name: str, sha256: str) -> None:
        """Take over the digest of a file that somebody else has hashed."""
        self._known[name] = sha256

    def start(self, name: str, path: Path) -> None:
        """Have a file hashed after those started before, unless its digest is known."""
        if name in self._known or name in self._hashes:
            return
        digest = _hub_digest(path)
        if digest is not None:
            self._known[name] = digest
        else:
            self._hashes[name] = self._thread.submit(self._sha256, name, path)

    def packed(self, count: int) -> None:
        """Count bytes packed; waits for the hashing where it is far behind."""
        with self._moved:
            self._packed_bytes += count
            self._moved.notify_all()
            while not self._stop and not self._is_idle() and self._lead() < -_WINDOW_BYTES:
                self._moved.wait(1)

    def result(self, name: str) -> str:
        """Wait for the digest of a file that was started.

        Raises:
            KexpError: E_IO if the file cannot be read.
        """
        if name not in self._known:
            with self._moved:
                self._hurry = True
                self._moved.notify_all()
            try:
                self._known[name] = self._hashes[name].result()
            finally:
                self._hurry = False
        return self._known[name]

    def has_passed(self, name: str, offset_bytes: int) -> bool:
        """Whether no byte of a file before `offset_bytes` is still to be read here."""
        return name in self._known or self._positions.get(name, 0) >= offset_bytes

    def ready(self) -> dict[str, str]:
        """Return the digests known by now."""
        for name, future in self._hashes.items():
            if future.done():
                self._known[name] = future.result()
        return dict(self._known)

    def results(self) -> Digests:
        """Wait for all, each of which was started; return {name: {"sha256", "size"}}."""
        return {
            name: {"sha256": self.result(name), "size": size} for name, size in self._sizes.items()
        }

    def _lead(self) -> int:
        return self._hashed_bytes - self._packed_bytes

    def _is_idle(self) -> bool:
        return all(future.done() for future in self._hashes.values())

    def _sha256(self, name: str, path: Path) -> str:
        digest = hashlib.sha256()
        buffer = bytearray(_CHUNK_BYTES)
        with os_errors(path, "read"), path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                self._positions[name] = self._positions.get(name, 0) + count
                self._hashed(count)
                if self._stop:
                    break
        return digest.hexdigest()

    def _hashed(self, count: int) -> None:
        with self._moved:
            self._hashed_bytes += count
            self._moved.notify_all()
            while not self._stop and not self._hurry and self._lead() > _WINDOW_BYTES:
                self._moved.wait(1)


def _hub_digest(path: Path) -> str | None:
    if not path.is_symlink():
        return None
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    return None
