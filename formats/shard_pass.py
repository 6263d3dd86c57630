"""One shard read from its first byte to its last, in stretches that threads take one by one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from formats.crc32 import crc32
from formats.direct import DirectFile
from formats.errors import KexpError, short
from formats.layout import Layout
from formats.pieces import iter_pieces
from formats.sections import BLKS, CODEC_RAW, Section, decode_section, first_section_floor
from formats.shard import Shard

# Fits a core's own cache: the second checksum does not wait for memory again.
_SUM_BYTES = 256 << 10
# Blocks that one thread takes at a time: enough to keep reads in file order, and few enough that
# the last thread to finish keeps nobody waiting for long.
_STRETCH_BYTES = 32 << 20
# A file that is damaged throughout need not be listed block by block.
MAX_FINDINGS = 100


@dataclass(frozen=True)
class Stretch:
    """A part of the pass: a section, or the blocks of index rows [first_row, end_row) of BLKS.

    begin_bytes, end_bytes: what it stands for in the file, with the padding before a section.
    section: None for superblock and table.
    """

    section: Section | None
    begin_bytes: int
    end_bytes: int
    first_row: int = 0
    end_row: int = 0


class ShardPass:
    """Checks all of an open shard that was not checked when it was opened.

    Files are read past the page cache where the system lets us: what is compared is what the disk
    holds, and a set larger than the memory pushes nothing out of it.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._file = DirectFile(shard.path, shard.fd)
        self._gaps = [_gaps(layout) for layout in shard.layouts]
        self._ended = False
        self._lock = threading.Lock()

    def stretches(self) -> Iterator[Stretch]:
        """Yield stretches that cover the file without a gap, in file order."""
        end = first_section_floor(len(self._shard.sections))
        yield Stretch(None, 0, end)
        for section in self._shard.sections:
            if section.tag == BLKS:
                yield from self._block_stretches(section, end)
            else:
                yield Stretch(section, end, section.end_bytes)
            end = section.end_bytes

    def _block_stretches(self, section: Section, begin_bytes: int) -> Iterator[Stretch]:
        entries = self._shard.entries
        ends = entries["offset_bytes"] + entries["block_bytes"]
        first = 0
        while first < len(entries):
            limit = int(entries["offset_bytes"][first]) + _STRETCH_BYTES
            end = max(first + 1, int(np.searchsorted(ends, limit, side="right")))
            end_bytes = int(ends[end - 1])
            yield Stretch(section, begin_bytes, end_bytes, first, end)
            first, begin_bytes = end, end_bytes

    def check(self, stretch: Stretch, step: Callable[[int], None]) -> list[KexpError]:
        """Return the faults of a stretch. Threads may check several at once.

        step: called with the number of bytes of each read; what it raises ends the check.
        """
        section = stretch.section
        findings: list[KexpError] = []
        if self._ended:
            return findings
        try:
            if section is None:
                step(stretch.end_bytes)
            elif section.tag == BLKS:
                findings += self._check_blocks(stretch, step)
            else:
                step(section.offset_bytes - stretch.begin_bytes)
                self._check_section(section, step)
        except KexpError as error:
            if error.code != "E_FILE_SIZE" or self._is_first_end():
                findings.append(error)
        return findings

    def close(self) -> None:
        """Close what was opened for reading; the shard stays open."""
        self._file.close()

    def _is_first_end(self) -> bool:
        """Whether nobody has come upon the early end of the file yet: it is one fault, not many."""
        with self._lock:
            is_first, self._ended = not self._ended, True
        return is_first

    def _pieces(self, offset_bytes: int, length_bytes: int) -> Iterator[memoryview]:
        return iter_pieces(self._shard, self._file, offset_bytes, length_bytes)

    def _check_section(self, section: Section, step: Callable[[int], None]) -> None:
        if section.codec != CODEC_RAW:
            self._check_compressed(section, step)
            return
        crc, sha = 0, hashlib.sha256()
        for data in self._pieces(section.offset_bytes, section.stored_bytes):
            crc = _sum(data, crc, sha)
            step(len(data))
        if crc != section.crc32:
            code, message = "E_SECTION_CRC", f"crc32 {crc:08x} != {section.crc32:08x}"
        elif sha.digest() != section.sha256:
            code = "E_SECTION_SHA256"
            message = f"sha256 {short(sha.digest())} != {short(section.sha256)}"
        else:
            return
        raise self._in_section(code, section, message)

    def _check_compressed(self, section: Section, step: Callable[[int], None]) -> None:
        stored = self._shard.read(section.offset_bytes, section.stored_bytes)
        decode_section(section, stored, file=self._shard.path)
        step(section.stored_bytes)

    def _in_section(self, code: str, section: Section, message: str) -> KexpError:
        return KexpError(
            code,
            f"section {section.name}: {message}",
            file=self._shard.path,
            offset_bytes=section.offset_bytes,
        )

    def _check_blocks(self, stretch: Stretch, step: Callable[[int], None]) -> Iterator[KexpError]:
        """Yield the fault of each damaged block; one that cannot be read does not end the rest."""
        entries = self._shard.entries
        step(int(entries["offset_bytes"][stretch.first_row]) - stretch.begin_bytes)
        for row in range(stretch.first_row, stretch.end_row):
            entry = entries[row]
            offset_bytes = int(entry["offset_bytes"])
            try:
                fault = self._block_fault(entry, step)
            except KexpError as error:
                if error.code == "E_FILE_SIZE":
                    raise
                fault, offset_bytes = (error.code, error.message), error.offset_bytes or 0
            if fault is not None:
                yield KexpError(
                    *fault,
                    file=self._shard.path,
                    offset_bytes=offset_bytes,
                    layer=int(entry["layer"]),
                    expert=int(entry["expert"]),
                )

    def _block_fault(self, entry: np.void, step: Callable[[int], None]) -> tuple[str, str] | None:
        """Return (code, message) of what is wrong with a block, or None."""
        layout = int(entry["layout"])
        payload_bytes = self._shard.layouts[layout].payload_bytes
        crc, sha, at, is_padded = 0, hashlib.sha256(), 0, True
        for data in self._pieces(int(entry["offset_bytes"]), int(entry["block_bytes"])):
            crc = _sum(data[: max(0, payload_bytes - at)], crc, sha)
            is_padded = is_padded and _is_zero_in(data, at, self._gaps[layout])
            at += len(data)
            step(len(data))
        stored_crc, stored_sha = int(entry["crc32"]), bytes(entry["sha256"])
        if crc != stored_crc:
            return "E_BLOCK_CRC", f"crc32 {crc:08x} != {stored_crc:08x}"
        if sha.digest() != stored_sha:
            return "E_BLOCK_SHA256", f"sha256 {short(sha.digest())} != {short(stored_sha)}"
        if not is_padded:
            return "E_PADDING", "padding in the block is not zero"
        return None


def _sum(data: memoryview, crc: int, sha: hashlib._Hash) -> int:
    """Add data to a SHA-256, and return the CRC-32 `crc` with data added."""
    for start in range(0, len(data), _SUM_BYTES):
        part = data[start : start + _SUM_BYTES]
        crc = crc32(part, crc)
        sha.update(part)
    return crc


def _gaps(layout: Layout) -> list[tuple[int, int]]:
    """Return the (begin, end) of the stretches of a block that no part covers."""
    gaps = []
    floor = 0
    for part in layout.parts:
        if part.offset_bytes > floor:
            gaps.append((floor, part.offset_bytes))
        floor = part.offset_bytes + part.length_bytes
    if layout.block_bytes > floor:
        gaps.append((floor, layout.block_bytes))
    return gaps


def _is_zero_in(data: memoryview, at: int, gaps: list[tuple[int, int]]) -> bool:
    """Whether the gaps of a block are zero, as far as `data` goes, which begins at `at` in it."""
    end = at + len(data)
    return not any(
        np.frombuffer(data[max(0, begin - at) : stop - at], dtype=np.uint8).any()
        for begin, stop in gaps
        if begin < end and stop > at
    )
