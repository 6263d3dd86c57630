"""Right bytes from another copy of the container: those at the same places."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from formats.errors import os_errors, short
from formats.hub import HubFiles
from formats.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from formats.remote_index import fetch_index
from formats.sections import Section
from formats.shard import Shard
from kandiga_pack.errors import PackError
from kandiga_pack.repair.damage import CHUNK_BYTES, Block, head_bytes
from kandiga_pack.repair.origin import HeadParts


class LocalFiles:
    """Ranges of bytes of the files in a folder; the counterpart of formats.hub.HubFiles."""

    num_requests = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes = 0

    def read(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        path = self.folder / name
        with os_errors(path, "read"), path.open("rb") as stream:
            stream.seek(offset_bytes)
            data = stream.read(length_bytes)
        self.num_bytes += len(data)
        return data


class CopyOrigin:
    """Another copy of the same container: bytes from the same places."""

    def __init__(self, name: str, files: LocalFiles | HubFiles) -> None:
        self.name = name
        self._files = files
        self._index: tempfile.TemporaryDirectory[str] | None = None

    @property
    def num_bytes(self) -> int:
        return self._files.num_bytes

    @property
    def num_requests(self) -> int:
        return self._files.num_requests

    def check(self, manifest: Manifest) -> None:
        theirs = parse_manifest(self.manifest(), file=Path(self.name, MANIFEST_NAME))
        if theirs.set_root != manifest.set_root:
            raise PackError(
                f"{self.name}: is another model, or another conversion: its set root is "
                f"{short(theirs.set_root)}, wanted {short(manifest.set_root)}; nothing was written"
            )

    def manifest(self) -> bytes:
        return self._files.read(MANIFEST_NAME, 0, 1 << 24)

    def head(self, name: str) -> bytes:
        folder = self._index_folder()
        shard = Shard(folder / name)
        try:
            return shard.read(0, head_bytes(shard))
        finally:
            shard.close()

    def head_parts(self) -> HeadParts | None:
        return None

    def _index_folder(self) -> Path:
        """Return a folder with right heads: the copy itself, or what stands for it."""
        if isinstance(self._files, LocalFiles):
            return self._files.folder
        if self._index is None:
            self._index = tempfile.TemporaryDirectory(prefix="kandiga-index-")
            fetch_index(self._files, Path(self._index.name))
        return Path(self._index.name)

    def block(self, shard_name: str, block: Block) -> bytes:
        return self._files.read(shard_name, block.offset_bytes, block.layout.payload_bytes)

    def dense(self, shard_name: str, section: Section) -> Iterator[bytes]:
        for offset in range(section.offset_bytes, section.end_bytes, CHUNK_BYTES):
            length = min(CHUNK_BYTES, section.end_bytes - offset)
            yield self._files.read(shard_name, offset, length)

    def file(self, record: FileRecord) -> bytes:
        return self._files.read(record.name, 0, record.size_bytes)

    def close(self) -> None:
        if self._index is not None:
            self._index.cleanup()
