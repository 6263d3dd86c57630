"""The index of a set that is on the Hub, by ranges of bytes: no weights are fetched.

The files written have their true length, hold the fetched bytes at their places and are otherwise
sparse. `open_set` reads nothing else at open, so every check of a local set runs on a remote one,
by the same code.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from formats.constants import (
    BLOCK_ALIGN,
    EXPERT_ENTRY_BYTES,
    HEADER_BYTES,
    MAX_EXPERTS_PER_SHARD,
    MAX_JSON_BYTES,
    MIB,
)
from formats.dense import header_bytes
from formats.durable import write_at
from formats.hub import HubError, HubFiles, HubId
from formats.manifest import MANIFEST_NAME, Manifest, ShardRecord, parse_manifest
from formats.meta import layer_plans, parse_meta
from formats.parallel import map_threads
from formats.sections import (
    DENS,
    EXPT,
    LAYT,
    META,
    Section,
    decode_section,
    first_section_floor,
    parse_table,
)
from formats.superblock import parse_superblock

# Requests in flight while the heads of many shards are fetched.
_CONNECTIONS = 8
# Of the first shard, whose metadata, index and dense header take 100 to 800 kB in large models.
_FIRST_GUESS_BYTES = MIB
_PIECE_BYTES = 8 * MIB
_IN_HEAD = frozenset({META, LAYT, EXPT})


def fetch_index(files: HubFiles, folder: Path) -> Manifest:
    """Fetch kexp.json and the head of every shard into `folder`, which `open_set` then takes.

    A head is all before the weights: superblock, section table, META, LAYT, EXPT and the header of
    DENS. It comes in one request when the guess of its length was large enough, else in two or
    three.

    Raises:
        HubError, KexpError: the same as for a local set, as far as the heads can tell.
    """
    manifest = _fetch_manifest(files, folder)
    first, *others = manifest.shards
    head = _Head(files, folder, first)
    head.fetch(_FIRST_GUESS_BYTES)
    guess = _guess_bytes(head, manifest)

    def fetch(record: ShardRecord, checkpoint: Callable[[], None]) -> None:
        checkpoint()
        _Head(files, folder, record).fetch(guess(record))

    map_threads(fetch, others, num_threads=_CONNECTIONS)
    return manifest


def _fetch_manifest(files: HubFiles, folder: Path) -> Manifest:
    try:
        data = files.read(MANIFEST_NAME, 0, MAX_JSON_BYTES + 1)
    except HubError as error:
        if is_missing_entry(error):
            raise not_a_set(files.hub_id) from error
        raise
    path = folder / MANIFEST_NAME
    manifest = parse_manifest(data, file=path)
    path.write_bytes(data)
    return manifest


def is_missing_entry(error: HubError) -> bool:
    """Whether the repository is there and the file is not."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    return isinstance(error.__cause__, RemoteEntryNotFoundError)


def _guess_bytes(first: _Head, manifest: Manifest) -> Callable[[ShardRecord], int]:
    """Return how long the heads of later shards are likely to be: experts go by size."""
    meta = first.section(META)
    if meta is None:
        return lambda _record: _FIRST_GUESS_BYTES
    raw = decode_section(meta, first.stored(meta), file=first.path)
    layers = layer_plans(parse_meta(raw, file=first.path))
    experts = sum(layer.num_experts for layer in layers)
    total_bytes = sum(record.size_bytes for record in manifest.shards[1:])

    def guess(record: ShardRecord) -> int:
        share = experts * record.size_bytes // max(total_bytes, 1)
        rows = min(share + share // 8, MAX_EXPERTS_PER_SHARD)
        return HEADER_BYTES + BLOCK_ALIGN + EXPERT_ENTRY_BYTES * rows

    return guess


class _Head:
    """The head of one remote shard, growing into a sparse file."""

    def __init__(self, files: HubFiles, folder: Path, record: ShardRecord) -> None:
        self._files = files
        self._record = record
        self._fetched_bytes = 0
        self.path = folder / record.name
        self.sections: tuple[Section, ...] = ()

    def fetch(self, guess_bytes: int) -> None:
        """Fetch it; a good guess of its length saves requests."""
        with self.path.open("xb+", buffering=0) as self._stream:
            self._fetch(max(guess_bytes, HEADER_BYTES))
            self._stream.truncate(self._record.size_bytes)

    def _fetch(self, guess_bytes: int) -> None:
        self._extend_to(guess_bytes)
        superblock = parse_superblock(
            self._bytes(0, HEADER_BYTES),
            file=self.path,
            actual_bytes=self._files.size_bytes(self.path.name),
        )
        table_end = first_section_floor(superblock.section_count)
        self._extend_to(table_end)
        self.sections = parse_table(
            self._bytes(HEADER_BYTES, table_end),
            table_crc32=superblock.table_crc32,
            file=self.path,
            file_bytes=superblock.file_bytes,
        )
        small = [each.end_bytes for each in self.sections if each.tag in _IN_HEAD]
        dense = self.section(DENS)
        if dense is not None:
            small.append(dense.offset_bytes + 8)
        self._extend_to(max(small, default=0))
        if dense is not None:
            at = dense.offset_bytes
            length = header_bytes(
                self._bytes(at, at + 8), section_bytes=dense.stored_bytes, file=self.path
            )
            self._extend_to(at + length)

    def section(self, tag: bytes) -> Section | None:
        return next((each for each in self.sections if each.tag == tag), None)

    def stored(self, section: Section) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(section.offset_bytes)
            return stream.read(section.stored_bytes)

    def _bytes(self, begin: int, end: int) -> bytes:
        return os.pread(self._stream.fileno(), end - begin, begin)

    def _extend_to(self, end: int) -> None:
        """Fetch what is missing up to `end`, in pieces: the largest heads are a hundred MiB, and
        several are fetched at a time."""
        end = min(end, self._record.size_bytes)
        while self._fetched_bytes < end:
            length = min(end - self._fetched_bytes, _PIECE_BYTES)
            piece = self._files.read(self.path.name, self._fetched_bytes, length)
            write_at(self._stream.fileno(), piece, self._fetched_bytes)
            self._fetched_bytes += len(piece)
            if len(piece) < length:  # shorter than kexp.json says, which the superblock will tell
                break


def not_a_set(hub_id: HubId) -> HubError:
    """Return the error for a repository without kexp.json."""
    return HubError(
        errno.ENOENT,
        f"has no {MANIFEST_NAME}, so it is no .kexp model; a checkpoint is packed with "
        f"`kandiga-pack convert {hub_id.repository} DEST`",
        hub_id,
    )
