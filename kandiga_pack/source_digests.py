"""SHA-256 of the files a container is made from, computed while it is being written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

_CHUNK_BYTES = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNKNOWN = "0" * 64

Digests = dict[str, dict[str, Any]]


class SourceDigests:
    """Hashes files in a thread of its own; a context manager, which stops it.

    A file in the Hub's cache is a link to a blob called by its SHA-256, which is taken as it is:
    the Hub's client checked it when it downloaded the file.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._sizes = {name: path.stat().st_size for name, path in files.items()}
        self._stop = Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="source-sha256")
        self._hashes = self._thread.submit(self._hash_all)

    def __enter__(self) -> SourceDigests:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown()

    def placeholder(self) -> Digests:
        """Return {name: {"sha256", "size"}} with digests of the right length, not yet known."""
        return {name: {"sha256": _UNKNOWN, "size": size} for name, size in self._sizes.items()}

    def result(self) -> Digests:
        """Wait, and return {name: {"sha256", "size"}}; OSError if a file cannot be read."""
        hashes = self._hashes.result()
        return {name: {"sha256": hashes[name], "size": self._sizes[name]} for name in self._files}

    def _hash_all(self) -> dict[str, str]:
        return {name: _hub_digest(path) or self._sha256(path) for name, path in self._files.items()}

    def _sha256(self, path: Path) -> str:
        digest = hashlib.sha256()
        buffer = bytearray(_CHUNK_BYTES)
        with path.open("rb", buffering=0) as file:
            while not self._stop.is_set() and (count := file.readinto(buffer)):
                digest.update(memoryview(buffer)[:count])
        return digest.hexdigest()


def _hub_digest(path: Path) -> str | None:
    if not path.is_symlink():
        return None
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    return None
