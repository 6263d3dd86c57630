"""Writing one file of a set."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from formats import digests
from formats.buffers import Buffer, as_bytes
from formats.constants import EXPERT_ENTRY_BYTES, HEADER_BYTES
from formats.direct_writer import DirectWriter
from formats.durable import flush_to_disk, write_at
from formats.errors import KexpError, os_errors
from formats.expert_index import ENTRY_DTYPE
from formats.flusher import Flusher
from formats.manifest import ShardRecord
from formats.plan import SetPlan, ShardPlan, place_sections
from formats.sections import BLKS, DENS, EXPT, LAYT, META, Section, required_tags
from formats.superblock import Superblock


@dataclass(frozen=True)
class ShardCheckpoint:
    """A shard of which the first `num_rows` experts are on the disk, block and index entry.

    index_sha256: of those entries, in hexadecimal; each has the digest of its block.
    """

    shard: int
    num_rows: int
    index_sha256: str


@dataclass(frozen=True)
class BlockPlace:
    """Where a block goes; `write` is for any thread, `done` for the one that adds entries."""

    shard: ShardWriter
    row: int
    offset_bytes: int

    def write(self, block: memoryview) -> None:
        self.shard.write_block(block, self.offset_bytes)

    def done(self, crc32: int, sha256: bytes) -> None:
        self.shard.fill_entry(self.row, crc32, sha256)


class ShardWriter:
    """One file: sections whose places are known beforehand, filled in any order."""

    def __init__(
        self,
        number: int,
        plan: SetPlan,
        small: Mapping[bytes, bytes],
        dense_bytes: int,
        flusher: Flusher,
    ) -> None:
        self.number = number
        self.count = len(plan.shards)
        self.plan: ShardPlan = plan.shards[number]
        num_experts = sum(layer.num_experts for layer in self.plan.layers)
        self.small = dict(small)
        self.block_bytes = [layout.block_bytes for layout in plan.layouts]
        self.lengths = {
            META: len(small[META]),
            LAYT: len(small[LAYT]),
            EXPT: EXPERT_ENTRY_BYTES * num_experts,
            DENS: dense_bytes,
            BLKS: self.plan.blocks_bytes,
        }
        self.offsets = place_sections(number, self.count, self.lengths)
        last = required_tags(number, self.count)[-1]
        self.file_bytes = self.offsets[last] + self.lengths[last]
        self.entries = np.zeros(num_experts, dtype=ENTRY_DTYPE)
        self.num_written = 0
        self.next_block = self.offsets.get(BLKS, 0)
        self.dense_crc32 = 0
        self.dense_sha256 = b""
        self.superblock: Superblock | None = None
        self.path = Path(self.plan.name)
        self.is_touched = False
        self._flusher = flusher
        self._fd = -1
        self._direct: DirectWriter | None = None

    def create(self, folder: Path, done: ShardCheckpoint | None = None) -> None:
        """Create the file at its full length; what is never written reads as zeros.

        Args:
            done: take over the file that an earlier writer left instead.
        Raises:
            KexpError: E_PLAN if that file is not what `done` says.
        """
        self.path = folder / self.plan.name
        if done is not None:
            self._take_over(done)
            return
        with os_errors(self.path, "created"):
            fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(fd, self.file_bytes)
            finally:
                os.close(fd)

    def _take_over(self, done: ShardCheckpoint) -> None:
        """Believe the blocks, which were on the disk before `done` was, and compare the index.

        Hashing gigabytes again would take as long as to write them, and would find no more than
        the verification that any finished set may be given.
        """
        with os_errors(self.path, "read"):
            size = os.fstat(self._open()).st_size
        length = EXPERT_ENTRY_BYTES * done.num_rows
        index = self.read(length, self.offsets[EXPT]) if length else b""
        if size != self.file_bytes or hashlib.sha256(index).hexdigest() != done.index_sha256:
            raise KexpError(
                "E_PLAN", "is not as it was left by the writer to be resumed", file=self.path
            )
        self.entries[: done.num_rows] = np.frombuffer(index, dtype=ENTRY_DTYPE)
        self.num_written = done.num_rows
        self.next_block += int(self.entries["block_bytes"][: done.num_rows].sum())
        self.close()

    def has(self, row: int) -> bool:
        """Whether the expert in this row of the index is written, or under way."""
        return row < self.num_written

    def write(self, data: Buffer | bytes, offset: int) -> None:
        view = as_bytes(data)
        with os_errors(self.path, "written"):
            fd = self._open()
            write_at(fd, view, offset)
            self._flusher.wrote(fd, len(view))
        self.is_touched = True

    def write_block(self, block: memoryview, offset: int) -> None:
        """Write a block whose buffer is page-aligned, past the page cache where that is possible.

        `add_entry` has opened the file.
        """
        done = 0
        if self._direct is not None:
            with os_errors(self.path, "written"):
                done = self._direct.write(block, offset)
        if done < len(block):
            self.write(block[done:], offset + done)
        self.is_touched = True

    def read(self, length: int, offset: int) -> bytes:
        with os_errors(self.path, "read"):
            return os.pread(self._open(), length, offset)

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return self._fd

    def add_entry(self, layer: int, expert: int, layout: int) -> BlockPlace:
        """Add an entry to the index, and return the place of its block."""
        row, offset = self.num_written, self.next_block
        length = self.block_bytes[layout]
        self.entries[row] = (layer, expert, layout, 0, offset, length, 0, 0, bytes(32))
        self.next_block += length
        self.num_written += 1
        with os_errors(self.path, "written"):
            self._open()  # here: the workers that write blocks would race for it
        if self._direct is None:
            self._direct = DirectWriter(self.path)
        return BlockPlace(self, row, offset)

    def fill_entry(self, row: int, crc32: int, sha256: bytes) -> None:
        """Complete an entry once its block is written."""
        self.entries["crc32"][row] = crc32
        self.entries["sha256"][row] = np.void(sha256)

    def checkpoint(self) -> ShardCheckpoint:
        """Put blocks, dense weights and the entries so far on the disk; close a complete shard."""
        index = self.entries[: self.num_written].tobytes()
        if index:
            self.write(index, self.offsets[EXPT])
        with os_errors(self.path, "written"):
            flush_to_disk(self._open())
        self.is_touched = False
        if self.num_written == len(self.entries):
            self.close()
        return ShardCheckpoint(self.number, self.num_written, hashlib.sha256(index).hexdigest())

    def finish(self) -> bytes:
        """Write everything but the superblock; return the shard root."""
        self.small[EXPT] = self.entries.tobytes()
        sections = []
        for tag in required_tags(self.number, self.count):
            if tag in self.small:
                raw = self.small[tag]
                self.write(raw, self.offsets[tag])
                crc32, sha256 = zlib.crc32(raw), hashlib.sha256(raw).digest()
            elif tag == DENS:
                crc32, sha256 = self.dense_crc32, self.dense_sha256
            else:
                crc32 = 0
                sha256 = digests.tree_root(bytes(each) for each in self.entries["sha256"])
            length = self.lengths[tag]
            sections.append(Section(tag, self.offsets[tag], length, length, crc32, sha256))
        table = b"".join(section.pack() for section in sections)
        self.write(table, HEADER_BYTES)
        unrooted = Superblock(
            file_bytes=self.file_bytes,
            shard_no=self.number,
            shard_count=self.count,
            section_count=len(sections),
            table_crc32=zlib.crc32(table),
            set_root=bytes(32),
            shard_root=bytes(32),
        )
        root = digests.shard_root(unrooted, sections)
        self.superblock = replace(unrooted, shard_root=root)
        self.close()
        return root

    def stamp(self, set_root: bytes) -> None:
        """Write the superblock and put the file on the disk."""
        if self.superblock is None:
            raise RuntimeError("stamp before finish")
        self.write(replace(self.superblock, set_root=set_root).pack(), 0)
        with os_errors(self.path, "written"):
            flush_to_disk(self._open())
        self.close()

    def record(self) -> ShardRecord:
        """Return what kexp.json says about the shard, once `finish` has made its root."""
        if self.superblock is None:
            raise RuntimeError("record before finish")
        return ShardRecord(self.plan.name, self.file_bytes, self.superblock.shard_root.hex())

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a flush that failed before this is raised by wait
                self._flusher.wait()
            os.close(self._fd)
            self._fd = -1
