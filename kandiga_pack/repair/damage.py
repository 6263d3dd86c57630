"""What is damaged in a shard whose head is known to be right."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from formats import KexpError, Layout
from formats.dense import header_bytes
from formats.manifest import FileRecord, Manifest, ShardRecord
from formats.sections import BLKS, DENS, Section
from formats.shard import Shard

CHUNK_BYTES = 4 << 20
Step = Callable[[int], None]
Checkpoint = Callable[[], None]


@dataclass(frozen=True)
class Block:
    """An expert's block as the index has it. sha256: of the payload."""

    layer: int
    expert: int
    offset_bytes: int
    layout: Layout
    sha256: bytes


@dataclass
class ShardDamage:
    """What must be written again in one file of the set.

    path: the file. head: a shard whose head is right, the file itself or a stand-in without
    weights. is_head_damaged: whether the file's own head is not. is_resized: the file is missing,
    cut short or too long.
    """

    path: Path
    record: ShardRecord
    head: Shard
    is_head_damaged: bool
    is_resized: bool = False
    is_dense_damaged: bool = False
    blocks: list[Block] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.is_head_damaged or self.is_resized or self.is_dense_damaged or self.blocks)

    @property
    def dense(self) -> Section | None:
        """Section DENS, None in a shard of experts alone."""
        return self.head.section(DENS) if self.head.has_section(DENS) else None


def head_bytes(shard: Shard) -> int:
    """Return the length of all that precedes the weights: index, and the header of DENS."""
    if not shard.has_section(DENS):
        return shard.section(BLKS).offset_bytes
    section = shard.section(DENS)
    start = shard.read(section.offset_bytes, 8)
    length = header_bytes(start, section_bytes=section.stored_bytes, file=shard.path)
    return section.offset_bytes + length


def padding(shard: Shard) -> list[tuple[int, int]]:
    """Return the (begin, end) of what lies between sections."""
    return [
        (one.end_bytes, other.offset_bytes) for one, other in itertools.pairwise(shard.sections)
    ]


def open_right(path: Path, record: ShardRecord, manifest: Manifest) -> Shard | None:
    """Return the shard at `path` if its head is the one that kexp.json pins, else None."""
    try:
        shard = Shard(path)
    except KexpError:
        return None
    roots = (shard.superblock.shard_root.hex(), shard.superblock.set_root.hex())
    if roots == (record.shard_root, manifest.set_root) and shard.size_bytes == record.size_bytes:
        return shard
    shard.close()
    return None


def scan_shard(damage: ShardDamage, step: Step, checkpoint: Checkpoint) -> None:
    """Read all weights of a shard and note in `damage` which are wrong."""
    path = damage.path
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path.exists() else -1
    try:
        size_bytes = os.fstat(fd).st_size if fd >= 0 else -1
        damage.is_resized = size_bytes != damage.record.size_bytes
        if damage.dense is not None:
            damage.is_dense_damaged = not _is_right_dense(fd, damage.dense, step, checkpoint)
        for block in _blocks(damage.head):
            checkpoint()
            if not is_right_block(read_or_less(fd, block.offset_bytes, block.layout), block):
                damage.blocks.append(block)
            step(block.layout.block_bytes)
    finally:
        if fd >= 0:
            os.close(fd)


def _blocks(shard: Shard) -> Iterator[Block]:
    for entry in shard.entries:
        yield Block(
            int(entry["layer"]),
            int(entry["expert"]),
            int(entry["offset_bytes"]),
            shard.layouts[int(entry["layout"])],
            bytes(entry["sha256"]),
        )


def _is_right_dense(fd: int, section: Section, step: Step, checkpoint: Checkpoint) -> bool:
    digest = hashlib.sha256()
    for offset in range(section.offset_bytes, section.end_bytes, CHUNK_BYTES):
        checkpoint()
        length = min(CHUNK_BYTES, section.end_bytes - offset)
        digest.update(_pread(fd, length, offset))
        step(length)
    return digest.digest() == section.sha256


def read_or_less(fd: int, offset_bytes: int, layout: Layout) -> bytes:
    """Return a block, or less of it where the file ends or the disk gives an error."""
    return _pread(fd, layout.block_bytes, offset_bytes)


def is_right_block(data: bytes, block: Block) -> bool:
    """Whether `data` is the block that was written: its payload, and zeros between and after."""
    payload_bytes = block.layout.payload_bytes
    if len(data) != block.layout.block_bytes or any(data[payload_bytes:]):
        return False
    return hashlib.sha256(data[:payload_bytes]).digest() == block.sha256


def _pread(fd: int, length: int, offset: int) -> bytes:
    """Read all there is of a stretch; a sector that cannot be read is damage like any other."""
    data = b""
    try:
        while fd >= 0 and len(data) < length:
            piece = os.pread(fd, length - len(data), offset + len(data))
            if not piece:
                break
            data += piece
    except OSError:
        pass
    return data


def is_right_file(path: Path, record: FileRecord) -> bool:
    """Whether a file beside the shards is the one that kexp.json pins."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data).hexdigest() == record.sha256
