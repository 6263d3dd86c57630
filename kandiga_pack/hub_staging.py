"""A checkpoint on the Hub, downloaded, packed and removed file by file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from formats.durable import hash_file
from formats.errors import os_errors
from formats.hub import HubFiles, HubId, hub_errors
from kandiga_pack.errors import PackError
from kandiga_pack.journal import Journal
from kandiga_pack.sources.checkpoint import INDEX_FILE, SHARD_PATTERN, CheckpointSource
from kandiga_pack.sources.hub import COMPANION_PATTERNS
from kandiga_pack.staging import replace_by_stub, write_stub

# Headers of checkpoints with a tensor for each expert have a few megabytes.
_HEADER_GUESS_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
# Requests for headers in flight.
_CONNECTIONS = 8
# Left free on the disk when the next file is begun before it is needed.
_SPARE_BYTES = 2 << 30


class StreamedRepository:
    """A repository whose weight files are downloaded when they are needed; a `staging.Stage`.

    Configuration and tokenizer go to the Hub's cache, as ever; so does nothing else. A weight file
    that the cache already has is used from there, and stays.

    Args:
        hub_id: repository and revision; the commit it stands at is the one packed.
        folder: where the checkpoint is staged.
        downloads: where weight files are downloaded to; those of other commits are removed.
        journal: told of a file before it is removed.

    Raises:
        HubError: no such repository or revision, no access, or no network.
    """

    def __init__(self, hub_id: HubId, folder: Path, downloads: Path, journal: Journal) -> None:
        self._journal = journal
        self._folder = folder
        _keep_logs_clean()
        with hub_errors(hub_id):
            commit = _commit_of(hub_id)
            self._hub_id = HubId(hub_id.repository, commit)
            self._files = _list_weights(self._hub_id)
            companions = _fetch_companions(self._hub_id)
        self.identities = {name: list(facts) for name, facts in self._files.items()}
        self._downloads = downloads / commit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub-download")
        self._coming: dict[str, Future[tuple[Path, str]]] = {}
        with os_errors(folder, "filled"):
            for other in downloads.glob("*"):
                if other != self._downloads:
                    shutil.rmtree(other)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in companions.iterdir():
                if path.name not in self._files and path.is_file():
                    (folder / path.name).symlink_to(path.resolve())
        ranges = HubFiles(self._hub_id)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(lambda name: self._stage(name, ranges), self._files))
        self.source = CheckpointSource(
            folder, name=str(hub_id), repository=hub_id.repository, revision=commit
        )
        for shard in self.source.shards.values():
            if not shard.path.is_symlink():
                shard.withhold()

    def _stage(self, name: str, ranges: HubFiles) -> None:
        """Put a weight file's link or stub into the staged folder."""
        cached = _in_cache(self._hub_id, name)
        if cached is not None and name not in self._journal.freed:
            (self._folder / name).symlink_to(cached)
            return
        header = _read_header(ranges, name)
        write_stub(self._folder / name, header, self._files[name][0])

    @property
    def to_fetch(self) -> Mapping[str, int]:
        """Every weight file that is not in use yet; of no size if an earlier run has fetched it."""
        return {
            name: 0 if (self._downloads / name).exists() else shard.size_bytes
            for name, shard in self.source.shards.items()
            if not shard.path.is_symlink() and name not in self._journal.freed
        }

    @property
    def to_free(self) -> Mapping[str, int]:
        """Every weight file that is not in the Hub's cache."""
        return {
            name: shard.size_bytes
            for name, shard in self.source.shards.items()
            if self._is_ours(name) or name in self.to_fetch
        }

    def _is_ours(self, name: str) -> bool:
        path = self._folder / name
        return path.is_symlink() and path.readlink().parent == self._downloads

    def fetch(self, name: str, following: str | None) -> str | None:
        """Wait for a weight file, and begin with the next one if the disk has room to spare.

        Raises:
            HubError: it cannot be downloaded.
            PackError: it came damaged, or is not the file whose header was read.
        """
        if name not in self.to_fetch:
            return None
        path, digest = self._begin(name).result()
        link = self._folder / name
        with os_errors(link, "linked"):
            link.unlink()
            link.symlink_to(path)
        self.source.shards[name].reopen()
        if following is not None and following in self.to_fetch:
            free_bytes = shutil.disk_usage(self._folder).free
            if free_bytes > self.to_fetch[following] + _SPARE_BYTES + self._still_to_come():
                self._begin(following)
        return digest

    def _still_to_come(self) -> int:
        """Return at least as many bytes as the set will still grow by."""
        return sum(self.to_fetch.values()) + max(self.to_free.values(), default=0)

    def _begin(self, name: str) -> Future[tuple[Path, str]]:
        if name not in self._coming:
            self._coming[name] = self._thread.submit(self._download, name)
        return self._coming[name]

    def _download(self, name: str) -> tuple[Path, str]:
        """Return where the file is and its SHA-256, which is the one that the Hub states."""
        from huggingface_hub import hf_hub_download

        with hub_errors(self._hub_id):
            path = Path(
                hf_hub_download(
                    self._hub_id.repository,
                    name,
                    revision=self._hub_id.revision,
                    local_dir=self._downloads,
                )
            )
        with os_errors(path, "read"):
            digest = hash_file(path)
        stated = self._files[name][1]
        if stated not in (None, digest):
            path.unlink()  # else the client would take it for what it fetched
            raise PackError(
                f"{self._hub_id.repository}: {name} came with sha256 {digest[:16]}..., the Hub "
                f"states {stated[:16]}...; run the command again"
            )
        return path, digest

    def free(self, name: str) -> None:
        """Remove a downloaded weight file."""
        if name in self._journal.freed or name not in self.to_free:
            return
        if self._is_ours(name):
            replace_by_stub(self.source, name)
        self._journal.free(name)
        with os_errors(self._downloads / name, "removed"):
            (self._downloads / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the checkpoint; a download under way is waited for, and can be taken up later."""
        self._thread.shutdown(cancel_futures=True)
        self.source.close()


def _keep_logs_clean() -> None:
    """Have huggingface_hub draw its bars on a terminal only, as ours are."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _commit_of(hub_id: HubId) -> str:
    from huggingface_hub import HfApi

    commit = HfApi().model_info(hub_id.repository, revision=hub_id.revision).sha
    if commit is None:
        raise PackError(f"{hub_id}: the Hub states no commit")
    return str(commit)


def _list_weights(hub_id: HubId) -> dict[str, tuple[int, str | None]]:
    """Return name -> (size, SHA-256 if the Hub states it) of each weight file at the top."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(hub_id.repository, revision=hub_id.revision)
    return {
        entry.path: (entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile) and fnmatch(entry.path, SHARD_PATTERN)
    }


def _fetch_companions(hub_id: HubId) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            hub_id.repository,
            revision=hub_id.revision,
            allow_patterns=[*COMPANION_PATTERNS, INDEX_FILE],
            ignore_patterns=["*/*"],
        )
    )


def _in_cache(hub_id: HubId, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub_id.repository, name, revision=hub_id.revision)
    return Path(path) if isinstance(path, str) else None


def _read_header(files: HubFiles, name: str) -> bytes:
    """Return the JSON of a safetensors header, by one or two ranges."""
    start = files.read(name, 0, _HEADER_GUESS_BYTES)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > _MAX_HEADER_BYTES:
        raise PackError(f"{files.hub_id}: {name} is not a safetensors file")
    if len(start) < 8 + length:
        start += files.read(name, len(start), 8 + length - len(start))
    return start[8 : 8 + length]
