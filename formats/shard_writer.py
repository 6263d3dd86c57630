"""Writing one file of a set."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from formats import digests
from formats.buffers import Buffer, as_bytes
from formats.constants import EXPERT_ENTRY_BYTES, HEADER_BYTES
from formats.durable import flush_to_disk, write_at
from formats.errors import os_errors
from formats.expert_index import ENTRY_DTYPE
from formats.manifest import ShardRecord
from formats.plan import SetPlan, ShardPlan, place_sections
from formats.sections import BLKS, DENS, EXPT, LAYT, META, Section, required_tags
from formats.superblock import Superblock


class ShardWriter:
    """One file: sections whose places are known beforehand, filled in any order."""

    def __init__(
        self, number: int, plan: SetPlan, small: Mapping[bytes, bytes], dense_bytes: int
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
        self._fd = -1

    def create(self, folder: Path) -> None:
        """Create the file at its full length; what is never written reads as zeros."""
        self.path = folder / self.plan.name
        with os_errors(self.path, "created"):
            fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(fd, self.file_bytes)
            finally:
                os.close(fd)

    def write(self, data: Buffer | bytes, offset: int) -> None:
        with os_errors(self.path, "written"):
            write_at(self._open(), as_bytes(data), offset)

    def read(self, length: int, offset: int) -> bytes:
        with os_errors(self.path, "read"):
            return os.pread(self._open(), length, offset)

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return self._fd

    def write_block(self, block: bytearray) -> None:
        self.write(block, self.next_block)

    def add_entry(self, layer: int, expert: int, layout: int, crc32: int, sha256: bytes) -> None:
        """Record the block just written; the last one closes the file until the roots are known."""
        row = self.num_written
        length = self.block_bytes[layout]
        self.entries[row] = (layer, expert, layout, 0, self.next_block, length, crc32, 0, sha256)
        self.next_block += length
        self.num_written += 1
        if self.num_written == len(self.entries):
            self.close()

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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
