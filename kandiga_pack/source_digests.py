"""SHA-256 of the files a container was made from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandiga_pack.progress import Progress

_CHUNK_BYTES = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def hash_files(files: Mapping[str, Path], progress: Progress) -> dict[str, dict[str, Any]]:
    """Return {name: {"sha256", "size"}} of every file.

    A file in the Hub's cache is a link to a blob called by its SHA-256, which is taken as it is:
    the Hub's client checked it when it downloaded the file.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    known = {name: digest for name, path in files.items() if (digest := _hub_digest(path))}
    unknown = {name: path for name, path in files.items() if name not in known}
    if unknown:
        progress.start("hashing the source", sum(sizes[name] for name in unknown))
        try:
            known |= {name: _sha256(path, progress) for name, path in unknown.items()}
        finally:
            progress.finish()
    return {name: {"sha256": known[name], "size": sizes[name]} for name in files}


def _hub_digest(path: Path) -> str | None:
    if not path.is_symlink():
        return None
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    return None


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            progress.advance(count)
    return digest.hexdigest()
