"""Reading a set to its last byte, to see whether it is what was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from formats import digests
from formats.durable import hash_file
from formats.errors import KexpError, os_errors, short
from formats.manifest import MANIFEST_NAME, FileRecord
from formats.parallel import map_threads
from formats.reader import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    KexpSet,
    open_set,
    parse_config,
    read_small,
)
from formats.sections import BLKS
from formats.shard import Shard
from formats.shard_pass import MAX_FINDINGS, ShardPass, Stretch

Progress = Callable[[int], None]


@dataclass
class Report:
    """What a verification found.

    findings: one error for each fault, in the order of files and offsets; empty when all is well.
    num_shards, num_experts, num_bytes: how much was checked; num_bytes counts weights read.
    """

    findings: list[KexpError] = field(default_factory=list)
    num_shards: int = 0
    num_experts: int = 0
    num_bytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.findings


def verify_index(path: str | Path) -> Report:
    """Check all that is checked at open, the block tree roots, and the files beside the shards.

    Weights are not read. Faults are returned, not raised.
    """
    return _verify(path, None)


def verify_full(
    path: str | Path, progress: Progress | None = None, *, num_threads: int | None = None
) -> Report:
    """Check every byte of the set: `verify_index`, then each shard from end to end.

    A flipped bit anywhere is found: in a header, an index, a block, dense weights, padding, or the
    files that kexp.json pins. Faults are returned, not raised, at most 100 of each shard.

    Args:
        progress: called with the number of bytes of each step, from one thread at a time.
        num_threads: threads that read and hash; the default keeps every processor hashing while
            the disk reads. Each has a buffer of 2 MiB, whatever the size of the blocks.
    """

    def read_shards(opened: KexpSet, report: Report) -> None:
        lock = Lock()

        def count(num_bytes: int) -> None:
            with lock:
                report.num_bytes += num_bytes
                if progress is not None:
                    progress(num_bytes)

        def check(
            work: tuple[ShardPass, Stretch], checkpoint: Callable[[], None]
        ) -> list[KexpError]:
            def step(num_bytes: int) -> None:
                checkpoint()
                count(num_bytes)

            shard_pass, stretch = work
            return shard_pass.check(stretch, step)

        passes = [ShardPass(shard) for shard in opened.shards]
        work = [(each, stretch) for each in passes for stretch in each.stretches()]
        try:
            results = map_threads(check, work, num_threads=num_threads or _default_threads())
        finally:
            for each in passes:
                each.close()
        found: dict[ShardPass, list[KexpError]] = {each: [] for each in passes}
        for (shard_pass, _), findings in zip(work, results, strict=True):
            found[shard_pass].extend(findings)
        for findings in found.values():
            report.findings.extend(findings[:MAX_FINDINGS])

    return _verify(path, read_shards)


def _default_threads() -> int:
    # Two more than there are processors: somebody always waits for the disk.
    return (os.cpu_count() or 1) + 2


def _verify(path: str | Path, read_shards: Callable[[KexpSet, Report], None] | None) -> Report:
    report = Report()
    try:
        opened = open_set(path)
    except KexpError as error:
        report.findings.append(error)
        return report
    with opened:
        for record in opened.manifest.files:
            report.findings.extend(_check_file(opened.path / record.name, record))
        for shard in opened.shards:
            report.findings.extend(_check_block_root(shard))
            report.num_shards += 1
            report.num_experts += len(shard.entries)
        if read_shards is not None:
            read_shards(opened, report)
    return report


def _check_file(path: Path, record: FileRecord) -> list[KexpError]:
    if not path.is_file():
        return [KexpError("E_FILE_MISSING", f"{MANIFEST_NAME} lists it", file=path)]
    try:
        _compare_file(path, record)
    except KexpError as error:
        return [error]
    return []


def _compare_file(path: Path, record: FileRecord) -> None:
    with os_errors(path, "read"):
        size, actual = path.stat().st_size, hash_file(path)
    if size != record.size_bytes:
        message = f"{size} bytes, {MANIFEST_NAME} says {record.size_bytes}"
        raise KexpError("E_FILE_SIZE", message, file=path)
    if actual != record.sha256:
        message = f"sha256 {short(actual)} != {short(record.sha256)} in {MANIFEST_NAME}"
        raise KexpError("E_FILE_SHA256", message, file=path)
    if record.name == CONFIG_NAME:
        parse_config(read_small(path, MAX_CONFIG_BYTES), path)


def _check_block_root(shard: Shard) -> list[KexpError]:
    if not shard.has_section(BLKS):
        return []
    section = shard.section(BLKS)
    root = digests.tree_root(bytes(each) for each in shard.entries["sha256"])
    if root == section.sha256:
        return []
    return [
        KexpError(
            "E_BLOCKS_ROOT",
            f"root over the index's sha256 {short(root)} != {short(section.sha256)}",
            file=shard.path,
        )
    ]
