"""A checkpoint whose weight files come and go while it is packed.

The folder made here stands for the checkpoint. In it a weight file that is there is a link to it;
one that is still to be downloaded, or is gone, is a stub: its header, and a hole of its length. So
what the checkpoint consists of is known from the first moment to the last, also to a later run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from formats.durable import flush_folder, flush_to_disk
from formats.errors import os_errors
from kandiga_pack.errors import PackError, UnreadableError, UsageError
from kandiga_pack.journal import Journal
from kandiga_pack.source_stamps import identity
from kandiga_pack.sources.checkpoint import CheckpointSource


class Stage(Protocol):
    """What a conversion asks of a checkpoint whose files come and go."""

    source: CheckpointSource

    @property
    def identities(self) -> Mapping[str, list[Any]]:
        """What tells that a weight file is the one that an earlier run saw."""

    @property
    def to_fetch(self) -> Mapping[str, int]:
        """Size of each weight file that is not here yet."""

    @property
    def to_free(self) -> Mapping[str, int]:
        """Size of each weight file that is removed when it is packed."""

    def fetch(self, name: str, following: str | None) -> str | None:
        """Have a weight file here; begin with the one `following` where there is room.

        Returns:
            Its SHA-256 in hexadecimal if that is known.
        """

    def free(self, name: str) -> None:
        """Remove a weight file, all of whose tensors are on the disk elsewhere."""

    def close(self) -> None:
        """Release what is held. Safe to call twice."""


class ConsumedFolder:
    """A folder of the user's own whose weight files are removed one by one; a `Stage`.

    Args:
        origin: the folder.
        folder: where it is staged.
        journal: told of a file before it is removed.
        consume: whether any more are to be removed; without, those gone are only done without.

    Raises:
        PackError: a file is not the user's own to remove.
        UnreadableError: a file is missing that was not removed here.
    """

    def __init__(self, origin: Path, folder: Path, journal: Journal, *, consume: bool) -> None:
        self._origin = origin.absolute()
        self._folder = folder
        self._journal = journal
        self._consume = consume
        if consume:
            _check_folder(self._origin)
        with os_errors(folder, "filled"):
            self._link_all()
        self.source = CheckpointSource(folder, name=str(origin))
        try:
            self.identities = self._identify((journal.request or {}).get("files", {}))
            self._finish_removals()
        except BaseException:
            self.source.close()
            raise

    def _link_all(self) -> None:
        self._folder.mkdir(exist_ok=True)
        freed = self._journal.freed
        for path in self._folder.iterdir():
            if path.name not in freed:
                path.unlink()
        for path in self._origin.iterdir():
            if path.name not in freed and path.is_file():
                (self._folder / path.name).symlink_to(path)

    def _identify(self, recorded: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        found = {}
        for name, shard in self.source.shards.items():
            if name in self._journal.freed:
                shard.withhold()
                found[name] = recorded[name]
                continue
            if self._consume:
                _refuse_others_files(self._origin / name)
            found[name] = list(identity(self._origin / name))
        return found

    def _finish_removals(self) -> None:
        """Remove what a run was about to remove when it was killed, if it is still that file."""
        for name in self._journal.freed:
            path = self._origin / name
            if path.is_file() and list(identity(path)) == self.identities[name]:
                path.unlink()

    @property
    def to_fetch(self) -> Mapping[str, int]:
        """Nothing."""
        return {}

    @property
    def to_free(self) -> Mapping[str, int]:
        """Every weight file still there."""
        if not self._consume:
            return {}
        return {
            name: shard.size_bytes
            for name, shard in self.source.shards.items()
            if name not in self._journal.freed
        }

    def fetch(self, name: str, following: str | None) -> str | None:
        """Do nothing: everything is here, and nobody has said what its digest should be."""
        return None

    def free(self, name: str) -> None:
        """Remove a weight file from the user's folder."""
        if not self._consume or name in self._journal.freed:
            return
        path = self._origin / name
        if list(identity(path)) != self.identities[name]:
            raise PackError(f"{path}: changed while it was being packed; it is not removed")
        replace_by_stub(self.source, name)
        self._journal.free(name)
        with os_errors(path, "removed"):
            path.unlink()

    def close(self) -> None:
        """Close the checkpoint."""
        self.source.close()


def replace_by_stub(source: CheckpointSource, name: str) -> None:
    """Put a stub in the place of a staged weight file, durably, and close the file."""
    shard = source.shards[name]
    write_stub(shard.path, shard.header, shard.size_bytes)
    flush_folder(shard.path.parent)
    shard.withhold()


def write_stub(path: Path, header: bytes, size_bytes: int) -> None:
    """Write a file of `size_bytes` that has this safetensors header and is otherwise a hole."""
    temporary = path.with_name(f"{path.name}.stub")
    with os_errors(path, "written"):
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(size_bytes)
            file.flush()
            flush_to_disk(file.fileno())
        temporary.replace(path)


def _check_folder(origin: Path) -> None:
    if not origin.is_dir():
        raise UsageError(
            f"--consume removes the files of a checkpoint folder as they are packed, and {origin} "
            "is no folder"
        )
    if not os.access(origin, os.W_OK | os.X_OK):
        raise UnreadableError(f"{origin}: --consume may not remove files there (permission denied)")


def _refuse_others_files(path: Path) -> None:
    """Leave alone what another program keeps: a cache whose snapshots are links, shared files."""
    if path.is_symlink():
        raise PackError(
            f"{path}: a link to {path.readlink()}, which --consume does not remove; is this the "
            "Hub's cache? Give the Hub id instead: its files are downloaded and freed one by one"
        )
    if path.stat().st_uid != os.geteuid():
        raise PackError(f"{path}: belongs to another user; --consume removes only your own files")
