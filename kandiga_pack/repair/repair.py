"""Find what is damaged, fetch just that, prove it, write it, verify the whole."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from formats import MANIFEST_NAME
from formats.errors import short
from formats.manifest import FileRecord, Manifest, ShardRecord
from formats.parallel import map_threads
from formats.sections import LAYT
from formats.shard import Shard
from kandiga_pack.errors import PackError, UsageError, what_stays
from kandiga_pack.progress import NoProgress, Progress, piece_of_work
from kandiga_pack.repair.anchor import corrected_files, fetch_manifest, own_manifest
from kandiga_pack.repair.damage import (
    Block,
    ShardDamage,
    head_bytes,
    is_right_file,
    open_right,
    padding,
    scan_shard,
)
from kandiga_pack.repair.heads import rebuilt_heads, salvage_meta
from kandiga_pack.repair.open_origin import open_origin
from kandiga_pack.repair.origin import Origin
from kandiga_pack.repair.rewrite import Differences, Rewriter, join, replace_file
from kandiga_pack.verify import verify


@dataclass
class RepairSummary:
    """What was damaged, and what was done about it.

    blocks: {"file", "layer", "expert", "offset_bytes"} of each expert. dense, heads, files: names
    of files whose dense weights, index, or whole content were wrong.
    bytes_fetched, requests: from the source. bytes_written: in place.
    """

    path: Path
    source: str | None
    dry_run: bool
    blocks: list[dict[str, Any]] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    bytes_fetched: int = 0
    requests: int = 0
    bytes_written: int = 0
    seconds: float = 0.0

    @property
    def is_damaged(self) -> bool:
        """Whether anything was wrong."""
        return bool(self.blocks or self.dense or self.heads or self.resized or self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.__dict__, "path": str(self.path), "is_damaged": self.is_damaged}


def repair(
    path: str | Path,
    source: str | None = None,
    *,
    revision: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RepairSummary:
    """Rewrite the damaged parts of a container in place, and verify it.

    Bytes are written only after their SHA-256 was found to be the recorded one. kexp.json is the
    anchor: it pins the index of every shard, and the index pins every block. A damaged kexp.json
    comes from another copy only.

    Args:
        path: folder of the set.
        source: another copy of the container, or the checkpoint it was made from: a folder, a GGUF
            file, or a Hub id, of which only the ranges needed are fetched. By default the
            repository that the container records.
        revision: of a Hub id; by default the commit that the container records.
        dry_run: find the damage and write nothing.

    Raises:
        PackError: the source has other bytes than were packed (nothing of them is written), or
            something is damaged that it cannot give.
        KexpError: E_IO if the disk does not keep what is written.
        formats.hub.HubError: the Hub does not give the source.
    """
    started = time.monotonic()
    folder = Path(path)
    if folder.suffix == ".kexp" and not folder.is_dir():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{path}: no such folder; repair mends a container on this machine")
    with ExitStack() as stack, what_stays("what is mended stays: run the same command to go on"):
        work = _Repair(folder, source, revision, dry_run, progress or NoProgress(), stack)
        summary = work.run()
    summary.seconds = time.monotonic() - started
    return summary


class _Repair:
    """One run."""

    def __init__(
        self,
        folder: Path,
        source: str | None,
        revision: str | None,
        dry_run: bool,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        self._folder = folder
        self._source, self._revision = source, revision
        self._progress, self._stack = progress, stack
        self._opened: Origin | None = None
        self._meta: dict[str, Any] | None = None
        self.summary = RepairSummary(folder, source, dry_run)

    def run(self) -> RepairSummary:
        lost_manifest: bytes | None = None
        manifest = own_manifest(self._folder)
        if manifest is None:
            manifest, lost_manifest = fetch_manifest(self._origin, self._folder)
        self._meta = salvage_meta(self._folder, manifest)
        shards = self._shards(manifest)
        self._scan(shards)
        files = self._damaged_files(manifest)
        if files and lost_manifest is None and not self.summary.dry_run:
            corrected = corrected_files(self._origin, self._folder, manifest, files)
            if corrected is not None:
                manifest, lost_manifest = corrected
                files = self._damaged_files(manifest)
        self._note(shards, files, lost=lost_manifest is not None)
        if self.summary.dry_run or not self.summary.is_damaged:
            return self._finished()
        self._origin.check(manifest)
        for record in files:
            self._mend_file(record)
        for damage in shards:
            if damage:
                self._mend_shard(damage)
        if lost_manifest is not None:
            replace_file(self._folder / MANIFEST_NAME, lost_manifest)
            self.summary.bytes_written += len(lost_manifest)
        self._verify()
        return self._finished()

    @property
    def _origin(self) -> Origin:
        """The source, opened when it is first needed: a dry run may do without."""
        if self._opened is None:
            text = self._source or self._recorded_source()
            origin = open_origin(text, self._meta, self._revision)
            self._opened = self._stack.enter_context(closing(origin))
            self.summary.source = text
        return self._opened

    def _recorded_source(self) -> str:
        recorded = self._meta["source"].get("repository") if self._meta else None
        if not recorded:
            raise UsageError("the container records no repository it was made from; give --from")
        return str(recorded)

    def _damaged_files(self, manifest: Manifest) -> list[FileRecord]:
        return [
            record
            for record in manifest.files
            if not is_right_file(self._folder / record.name, record)
        ]

    def _shards(self, manifest: Manifest) -> list[ShardDamage]:
        """Open the head of every shard, the right one where the file's own is damaged."""
        own = {record: self._own_head(record, manifest) for record in manifest.shards}
        layouts = next((_stored(each, LAYT) for each in own.values() if each is not None), None)
        return [
            ShardDamage(
                self._folder / record.name,
                record,
                head or self._right_head(record, manifest, layouts),
                is_head_damaged=head is None,
            )
            for record, head in own.items()
        ]

    def _own_head(self, record: ShardRecord, manifest: Manifest) -> Shard | None:
        shard = open_right(self._folder / record.name, record, manifest)
        if shard is not None:
            self._stack.callback(shard.close)
        return shard

    def _right_head(self, record: ShardRecord, manifest: Manifest, layouts: bytes | None) -> Shard:
        """Return the head of a shard as a sparse file: rebuilt from what is left, or fetched."""
        for data in self._guesses(record, manifest, layouts):
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kandiga-head-"))
            path = Path(folder, record.name)
            with path.open("xb") as stream:
                stream.write(data)
                stream.truncate(record.size_bytes)
            shard = open_right(path, record, manifest)
            if shard is not None:
                self._stack.callback(shard.close)
                return shard
        raise PackError(
            f"{self._origin.name}: its {record.name} has not the shard root "
            f"{short(record.shard_root)} that kexp.json pins; nothing was written"
        )

    def _guesses(
        self, record: ShardRecord, manifest: Manifest, layouts: bytes | None
    ) -> Iterator[bytes]:
        """Yield heads to be tried, those first that need no source."""
        rebuilt = partial(
            rebuilt_heads, self._folder, record, manifest, layouts=layouts, meta=self._meta
        )
        yield from rebuilt()
        parts = self._origin.head_parts()
        if parts is not None:
            rebuilt = partial(
                rebuilt, layouts=layouts or parts.layouts, dense_header=parts.dense_header
            )
            yield from rebuilt()
            if parts.payload is not None:
                yield from rebuilt(payload=parts.payload)
        yield self._origin.head(record.name)

    def _scan(self, shards: list[ShardDamage]) -> None:
        lock = Lock()

        def step(count: int) -> None:
            with lock:
                self._progress.advance(count)

        def scan(damage: ShardDamage, checkpoint: Callable[[], None]) -> None:
            scan_shard(damage, step, checkpoint)

        total_bytes = sum(damage.record.size_bytes for damage in shards)
        with piece_of_work(self._progress, "looking for damage", total_bytes):
            map_threads(scan, shards)

    def _note(self, shards: list[ShardDamage], files: list[FileRecord], *, lost: bool) -> None:
        summary = self.summary
        for damage in shards:
            name = damage.record.name
            summary.blocks += [_as_dict(name, block) for block in damage.blocks]
            summary.dense += [name] * damage.is_dense_damaged
            summary.heads += [name] * damage.is_head_damaged
            summary.resized += [name] * damage.is_resized
        summary.files = [record.name for record in files] + [MANIFEST_NAME] * lost

    def _mend_file(self, record: FileRecord) -> None:
        data = self._origin.file(record)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise self._wrong_bytes(record.name, hashlib.sha256(data).hexdigest(), record.sha256)
        replace_file(self._folder / record.name, data)
        self.summary.bytes_written += len(data)

    def _mend_shard(self, damage: ShardDamage) -> None:
        """Write blocks, dense weights, and the head last: until then nobody opens the file."""
        # The first bytes are proven before the file is so much as made longer.
        proven = (self._proven_block(damage, block) for block in damage.blocks)
        first = next(proven, None)
        with Rewriter(damage.path, damage.record.size_bytes) as file:
            if first is not None:
                file.put(*first)
            for data, offset_bytes in proven:
                file.put(data, offset_bytes)
            if damage.is_dense_damaged:
                self._mend_dense(damage, file)
            if damage.is_head_damaged or damage.is_resized:
                for begin, end in padding(damage.head):
                    file.put_differences(bytes(end - begin), begin)
                file.put_differences(damage.head.read(0, head_bytes(damage.head)), 0)
            self.summary.bytes_written += file.num_bytes

    def _proven_block(self, damage: ShardDamage, block: Block) -> tuple[bytes, int]:
        payload = self._origin.block(damage.record.name, block)
        digest = hashlib.sha256(payload).digest()
        if digest != block.sha256:
            where = f"{damage.record.name}: layer {block.layer} expert {block.expert}"
            raise self._wrong_bytes(where, digest.hex(), block.sha256.hex())
        return join([(0, payload)], block.layout.block_bytes), block.offset_bytes

    def _mend_dense(self, damage: ShardDamage, file: Rewriter) -> None:
        section = damage.dense
        assert section is not None
        digest = hashlib.sha256()
        offset = section.offset_bytes
        with Differences(file) as differences:
            for data in self._origin.dense(damage.record.name, section):
                digest.update(data)
                differences.note(data, offset)
                offset += len(data)
            if digest.digest() != section.sha256:
                where = f"dense weights of {damage.record.name}"
                raise self._wrong_bytes(where, digest.hexdigest(), section.sha256.hex())
            differences.write()

    def _wrong_bytes(self, what: str, seen: str, wanted: str) -> PackError:
        return PackError(
            f"{what}: {self._origin.name} has other bytes than were packed, sha256 {short(seen)}, "
            f"wanted {short(wanted)}; they were not written"
        )

    def _verify(self) -> None:
        report = verify(self._folder, progress=self._progress)
        if not report.ok:
            raise PackError(f"{report.findings[0]}; this could not be repaired")

    def _finished(self) -> RepairSummary:
        if self._opened is not None:
            self.summary.bytes_fetched = self._opened.num_bytes
            self.summary.requests = self._opened.num_requests
        return self.summary


def _stored(shard: Shard, tag: bytes) -> bytes:
    section = shard.section(tag)
    return shard.read(section.offset_bytes, section.stored_bytes)


def _as_dict(name: str, block: Block) -> dict[str, Any]:
    return {
        "file": name,
        "layer": block.layer,
        "expert": block.expert,
        "offset_bytes": block.offset_bytes,
    }
