"""One file of a set, opened and checked by itself."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import Any

from formats import dense, digests
from formats.constants import EXPERT_ENTRY_BYTES, HEADER_BYTES, MAX_JSON_BYTES
from formats.dense import DenseTensor
from formats.errors import KexpError, os_errors, short
from formats.expert_index import MAX_INDEX_BYTES, Entries, LayerRows, check_entries, entry_rows
from formats.layout import Layout
from formats.layout_section import MAX_LAYOUT_SECTION_BYTES, parse_layouts
from formats.manifest import shard_file_name
from formats.meta import check_dense_header, parse_meta
from formats.sections import (
    BLKS,
    DENS,
    EXPT,
    LAYT,
    META,
    Section,
    check_tags,
    decode_section,
    first_section_floor,
    parse_table,
)
from formats.superblock import Superblock, parse_superblock


class Shard:
    """An open .kexp file: mapped read-only, with everything but its weights checked.

    Checked: superblock, section table, metadata, layouts, expert index, dense header, and that the
    shard root follows from them. Not checked: blocks and dense data, which `verify` reads.

    Attributes:
        path, fd, size_bytes.
        mmap: the whole file, read-only. A file that is cut short while it is mapped kills the
            process with SIGBUS; containers are written once and replaced by rename.
        superblock, sections (in file order), layouts.
        layers: layer -> rows of that layer in `entries`.
        entries: (num_experts_in_shard,) structured view of the expert index, which begins at
            index_offset_bytes in the file.
        meta: the metadata document, None except in the first shard.
        tensors: dense tensors by name; empty except in the first shard.
    """

    def __init__(self, path: Path) -> None:
        """Open and check `path`; KexpError with any code of a single file."""
        self.path = path
        with os_errors(path, "opened"):
            self.fd = _open_regular(path)
            try:
                self.size_bytes = os.fstat(self.fd).st_size
                self.superblock: Superblock = parse_superblock(
                    os.pread(self.fd, HEADER_BYTES, 0), file=path, actual_bytes=self.size_bytes
                )
                self.mmap = mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
            except BaseException:
                os.close(self.fd)
                raise
        self.index_offset_bytes = 0
        self.entries: Entries = entry_rows(b"")
        self.layers: dict[int, LayerRows] = {}
        self.meta: dict[str, Any] | None = None
        self.tensors: dict[str, DenseTensor] = {}
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        self._check_name()
        self.sections: tuple[Section, ...] = self._read_table()
        self._by_tag = {section.tag: section for section in self.sections}
        self._check_gaps()
        root = digests.shard_root(self.superblock, self.sections)
        if root != self.superblock.shard_root:
            raise KexpError(
                "E_SHARD_ROOT",
                f"shard root {short(root)} != {short(self.superblock.shard_root)}",
                file=self.path,
                offset_bytes=104,
            )
        self.layouts: tuple[Layout, ...] = parse_layouts(
            self._decode(LAYT, MAX_LAYOUT_SECTION_BYTES), file=self.path
        )
        if self.has_section(EXPT):
            self._check_index()
        if self.has_section(META):
            self._check_meta()

    def _check_name(self) -> None:
        block = self.superblock
        wanted = shard_file_name(block.shard_no, block.shard_count)
        if self.path.name != wanted:
            raise KexpError(
                "E_SHARD_NAME",
                f"holds shard {block.shard_no + 1} of {block.shard_count}, called {wanted}",
                file=self.path,
                offset_bytes=48,
            )

    def _read_table(self) -> tuple[Section, ...]:
        block = self.superblock
        end = first_section_floor(block.section_count)
        if end > self.size_bytes:
            raise KexpError("E_FILE_SIZE", "the file ends in the section table", file=self.path)
        sections = parse_table(
            self.mmap[HEADER_BYTES:end],
            table_crc32=block.table_crc32,
            file=self.path,
            file_bytes=self.size_bytes,
        )
        check_tags(sections, block.shard_no, block.shard_count, self.path)
        return sections

    def _check_gaps(self) -> None:
        """Refuse anything but zeros between sections; a gap is shorter than an alignment."""
        end = first_section_floor(len(self.sections))
        for section in self.sections:
            if any(self.mmap[end : section.offset_bytes]):
                raise KexpError(
                    "E_PADDING",
                    f"padding before section {section.name} is not zero",
                    file=self.path,
                    offset_bytes=end,
                )
            end = section.end_bytes

    def has_section(self, tag: bytes) -> bool:
        return tag in self._by_tag

    def section(self, tag: bytes) -> Section:
        """Return the section with this tag; KeyError if the shard has none."""
        return self._by_tag[tag]

    def _decode(self, tag: bytes, limit_bytes: int) -> bytes:
        section = self.section(tag)
        if section.raw_bytes > limit_bytes:  # and the stored bytes are never more than the raw ones
            raise KexpError(
                "E_LIMIT",
                f"section {section.name} of {section.raw_bytes} bytes, at most {limit_bytes}",
                file=self.path,
                offset_bytes=section.offset_bytes,
            )
        stored = self.mmap[section.offset_bytes : section.end_bytes]
        return decode_section(section, stored, file=self.path)

    def _check_index(self) -> None:
        index = self.section(EXPT)
        raw = self._decode(EXPT, MAX_INDEX_BYTES)
        if len(raw) % EXPERT_ENTRY_BYTES:
            raise KexpError(
                "E_INDEX",
                f"index of {len(raw)} bytes is not whole entries of {EXPERT_ENTRY_BYTES}",
                file=self.path,
                offset_bytes=index.offset_bytes,
            )
        self.index_offset_bytes = index.offset_bytes
        self.entries = entry_rows(memoryview(self.mmap)[index.offset_bytes : index.end_bytes])
        self.layers = check_entries(
            self.entries, self.layouts, index=index, blocks=self.section(BLKS), file=self.path
        )

    def _check_meta(self) -> None:
        self.meta = parse_meta(self._decode(META, MAX_JSON_BYTES), file=self.path)
        section = self.section(DENS)
        at = section.offset_bytes
        length = dense.header_bytes(
            self.mmap[at : at + 8], section_bytes=section.stored_bytes, file=self.path
        )
        header = self.mmap[at : at + length]
        check_dense_header(self.meta, header, file=self.path)
        self.tensors = dense.parse_image_header(
            header,
            section_bytes=section.stored_bytes,
            base_bytes=at,
            file=self.path,
            shard=self.superblock.shard_no,
        )

    def close(self) -> None:
        """Close the file. The map itself goes when the last view of it does."""
        self.entries = entry_rows(b"")
        with contextlib.suppress(BufferError):  # somebody still holds a view
            self.mmap.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open_regular(path: Path) -> int:
    """Return a descriptor; what is not a regular file is refused, since opening a pipe blocks."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise KexpError("E_IO", "is not a regular file", file=path)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
