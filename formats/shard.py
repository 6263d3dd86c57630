"""One file of a set, opened and checked by itself."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from formats import dense, digests
from formats.constants import EXPERT_ENTRY_BYTES, HEADER_BYTES
from formats.dense import DenseTensor
from formats.errors import KexpError, os_errors, short
from formats.expert_index import Entries, LayerRows, check_entries, entry_rows
from formats.layout import Layout
from formats.layout_section import parse_layouts
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
        mmap: the whole file, read-only, for programs that compute on its pages. Touching a page
            that is gone, because the file was cut short, raises SIGBUS, which ends a process that
            has not made arrangements; nothing in this package touches the map.
        superblock, sections (in file order), layouts.
        layers: layer -> rows of that layer in `entries`.
        index: the expert index, 64 bytes an expert. entries: the same as a structured array
            (num_experts_in_shard,).
        meta: the metadata document, None except in the first shard.
        tensors: dense tensors by name; empty except in the first shard.
    """

    def __init__(self, path: Path) -> None:
        """Open and check `path`; KexpError with any code of a single file."""
        self.path = path
        with os_errors(path, "opened"):
            self.fd = _open_regular(path)
            try:
                status = os.fstat(self.fd)
                self.size_bytes, self._modified_ns = status.st_size, status.st_mtime_ns
                start = self.read(0, min(HEADER_BYTES, self.size_bytes))
                self.superblock: Superblock = parse_superblock(
                    start, file=path, actual_bytes=self.size_bytes
                )
                self.mmap = self._map()
            except BaseException:
                os.close(self.fd)
                raise
        self.index = b""
        self.entries: Entries = entry_rows(self.index)
        self.layers: dict[int, LayerRows] = {}
        self.meta: dict[str, Any] | None = None
        self.tensors: dict[str, DenseTensor] = {}
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _map(self) -> mmap.mmap:
        try:
            return mmap.mmap(self.fd, self.size_bytes, access=mmap.ACCESS_READ)
        except ValueError:  # the length is checked once more: the file has shrunk since
            self.check_unchanged()
            raise

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return a stretch of the file, read and not mapped; KexpError E_IO, E_FILE_SIZE."""
        data = bytearray(length_bytes)
        self.read_into(memoryview(data), offset_bytes)
        return bytes(data)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill a buffer of bytes from the file; KexpError E_IO, E_FILE_SIZE.

        One call may return less than was asked for: after a signal, above 2 GiB, on a network.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[done:]], offset_bytes + done)
            except OSError as error:
                raise self.unreadable(error, offset_bytes + done) from error
            if count == 0:
                raise self.ended(offset_bytes + done)
            done += count

    def unreadable(self, error: OSError, offset_bytes: int) -> KexpError:
        """Return the error for a read that the system refused."""
        return KexpError(
            "E_IO",
            f"cannot be read: {error.strerror or error}",
            file=self.path,
            offset_bytes=offset_bytes,
        )

    def ended(self, offset_bytes: int) -> KexpError:
        """Return the error for a file that has no bytes at `offset_bytes`."""
        return KexpError(
            "E_FILE_SIZE",
            f"{os.fstat(self.fd).st_size} bytes, {self.size_bytes} when it was opened: it was cut "
            "short while in use",
            file=self.path,
            offset_bytes=offset_bytes,
        )

    def check_unchanged(self) -> None:
        """Raise KexpError E_FILE_SIZE or E_FILE_CHANGED if the open file was written to.

        The file that was opened, that is: another one of its name, or none, changes nothing.
        Costs one fstat. What a program has computed from the map before this call is right as far
        as changes of the file go.
        """
        status = os.fstat(self.fd)
        if status.st_size != self.size_bytes:
            raise KexpError(
                "E_FILE_SIZE",
                f"{status.st_size} bytes, {self.size_bytes} when it was opened: it was changed "
                "while in use",
                file=self.path,
            )
        if status.st_mtime_ns != self._modified_ns:
            raise KexpError(
                "E_FILE_CHANGED", "was written to while in use: open it again", file=self.path
            )

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
        self.layouts: tuple[Layout, ...] = parse_layouts(self._decode(LAYT), file=self.path)
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
            self.read(HEADER_BYTES, end - HEADER_BYTES),
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
            if any(self.read(end, section.offset_bytes - end)):
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

    def expert_at(self, offset_bytes: int) -> tuple[int, int] | None:
        """Return (layer, expert) of the block that covers a byte of the file, or None."""
        row = int(np.searchsorted(self.entries["offset_bytes"], offset_bytes, side="right")) - 1
        if row < 0:
            return None
        entry = self.entries[row]
        if offset_bytes >= int(entry["offset_bytes"]) + int(entry["block_bytes"]):
            return None
        return int(entry["layer"]), int(entry["expert"])

    def _decode(self, tag: bytes) -> bytes:
        section = self.section(tag)
        stored = self.read(section.offset_bytes, section.stored_bytes)
        return decode_section(section, stored, file=self.path)

    def _check_index(self) -> None:
        index = self.section(EXPT)
        raw = self._decode(EXPT)
        if len(raw) % EXPERT_ENTRY_BYTES:
            raise KexpError(
                "E_INDEX",
                f"index of {len(raw)} bytes is not whole entries of {EXPERT_ENTRY_BYTES}",
                file=self.path,
                offset_bytes=index.offset_bytes,
            )
        self.index = raw
        self.entries = entry_rows(raw)
        self.layers = check_entries(
            self.entries, self.layouts, index=index, blocks=self.section(BLKS), file=self.path
        )

    def _check_meta(self) -> None:
        self.meta = parse_meta(self._decode(META), file=self.path)
        section = self.section(DENS)
        at = section.offset_bytes
        length = dense.header_bytes(
            self.read(at, min(8, section.stored_bytes)),
            section_bytes=section.stored_bytes,
            file=self.path,
        )
        header = self.read(at, length)
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
