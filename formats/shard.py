"""One file of a set, opened and checked by itself."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import Any

from formats import dense, digests
from formats.constants import (
    EXPERT_ENTRY_BYTES,
    HEADER_BYTES,
    MAX_EXPERTS_PER_LAYER,
    MAX_JSON_BYTES,
    MAX_LAYERS,
)
from formats.errors import KexpError
from formats.expert_index import Entries, LayerRows, check_entries, entry_rows
from formats.layout import MAX_SECTION_BYTES, Layout, parse_layouts
from formats.manifest import shard_file_name
from formats.meta import check_dense_header, layer_plans, parse_meta
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
        entries: (num_experts_in_shard,) structured view of the expert index.
        meta: the metadata document, None except in the first shard.
        tensors: dense tensors by name; empty except in the first shard.
    """

    def __init__(self, path: Path) -> None:
        """Open and check `path`; KexpError with any code of a single file."""
        self.path = path
        self.fd, self.size_bytes = _open_regular(path)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        start = os.pread(self.fd, HEADER_BYTES, 0)
        self.superblock: Superblock = parse_superblock(
            start, file=self.path, actual_bytes=self.size_bytes
        )
        self._check_name()
        self.mmap = mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
        self.sections = self._read_table()
        block = self.superblock
        check_tags(self.sections, block.shard_no, block.shard_count, self.path)
        root = digests.shard_root(block, self.sections)
        if root != block.shard_root:
            raise KexpError(
                "E_SHARD_ROOT",
                f"shard root {root.hex()[:16]}... != {block.shard_root.hex()[:16]}...",
                file=self.path,
                offset_bytes=104,
            )
        self.layouts: tuple[Layout, ...] = parse_layouts(
            self._decode(LAYT, MAX_SECTION_BYTES), file=self.path
        )
        self.entries: Entries = entry_rows(b"")
        self.layers: dict[int, LayerRows] = {}
        if self.section(EXPT) is not None:
            self._check_index()
        self.meta: dict[str, Any] | None = None
        self.tensors: dict[str, dense.DenseTensor] = {}
        if self.section(META) is not None:
            self._check_meta()

    def _check_name(self) -> None:
        wanted = shard_file_name(self.superblock.shard_no, self.superblock.shard_count)
        if self.path.name != wanted:
            raise KexpError(
                "E_SHARD_NAME",
                f"holds shard {self.superblock.shard_no + 1} of {self.superblock.shard_count}, "
                f"whose name is {wanted}",
                file=self.path,
                offset_bytes=48,
            )

    def _read_table(self) -> tuple[Section, ...]:
        end = first_section_floor(self.superblock.section_count)
        if end > self.size_bytes:
            raise KexpError("E_FILE_SIZE", "the file ends in the section table", file=self.path)
        return parse_table(
            self.mmap[HEADER_BYTES:end],
            table_crc32=self.superblock.table_crc32,
            file=self.path,
            file_bytes=self.size_bytes,
        )

    def section(self, tag: bytes) -> Section | None:
        """Return the section with this tag, or None."""
        for section in self.sections:
            if section.tag == tag:
                return section
        return None

    def _wanted(self, tag: bytes) -> Section:
        section = self.section(tag)
        if section is None:  # check_tags has run
            raise KexpError("E_SECTION_SET", f"no section {tag.decode()}", file=self.path)
        return section

    def _decode(self, tag: bytes, limit_bytes: int) -> bytes:
        section = self._wanted(tag)
        if section.stored_bytes > limit_bytes + 1024:  # room for a zstd frame that does not pay
            raise KexpError(
                "E_LIMIT",
                f"section {section.name} of {section.stored_bytes} bytes, at most {limit_bytes}",
                file=self.path,
                offset_bytes=section.offset_bytes,
            )
        stored = self.mmap[section.offset_bytes : section.end_bytes]
        return decode_section(section, stored, limit_bytes=limit_bytes, file=self.path)

    def _check_index(self) -> None:
        index = self._wanted(EXPT)
        limit = EXPERT_ENTRY_BYTES * MAX_LAYERS * MAX_EXPERTS_PER_LAYER
        raw = self._decode(EXPT, limit)
        if len(raw) % EXPERT_ENTRY_BYTES:
            raise KexpError(
                "E_INDEX",
                f"index of {len(raw)} bytes is not whole entries of {EXPERT_ENTRY_BYTES}",
                file=self.path,
                offset_bytes=index.offset_bytes,
            )
        view = memoryview(self.mmap)[index.offset_bytes : index.end_bytes]
        self.entries = entry_rows(view)
        self.layers = check_entries(
            self.entries, self.layouts, index=index, blocks=self._wanted(BLKS), file=self.path
        )

    def _check_meta(self) -> None:
        self.meta = parse_meta(self._decode(META, MAX_JSON_BYTES), file=self.path)
        for layer in layer_plans(self.meta):
            if layer.layout >= len(self.layouts):
                raise KexpError(
                    "E_META",
                    f"metadata: layout {layer.layout} of {len(self.layouts)}",
                    file=self.path,
                    layer=layer.layer,
                )
        section = self._wanted(DENS)
        at = section.offset_bytes
        length = dense.header_bytes(
            self.mmap[at : at + min(8, section.stored_bytes)],
            section_bytes=section.stored_bytes,
            file=self.path,
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
        mapped = getattr(self, "mmap", None)
        if mapped is not None:
            with contextlib.suppress(BufferError):  # somebody still holds a view
                mapped.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open_regular(path: Path) -> tuple[int, int]:
    """Return (fd, size); anything but a regular file is refused before a read could block on it."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise KexpError("E_IO", "is not a regular file", file=path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KexpError("E_FILE_MISSING", f"no such file in {path.parent}", file=path) from None
    except OSError as error:
        raise KexpError("E_IO", f"cannot be opened: {error.strerror}", file=path) from None
    return fd, os.fstat(fd).st_size
