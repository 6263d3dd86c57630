"""One shard read from its first byte to its last."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable

import numpy as np

from formats.errors import KexpError, os_errors, short
from formats.layout import Layout
from formats.sections import BLKS, CODEC_RAW, Section, decode_section, first_section_floor
from formats.shard import Shard

_CHUNK_BYTES = 4 << 20
# A file that is damaged throughout need not be listed block by block.
_MAX_FINDINGS = 100


class ShardPass:
    """One shard read from its first byte to its last, each byte once."""

    def __init__(
        self,
        shard: Shard,
        step: Callable[[int], None],
        checkpoint: Callable[[], None],
    ) -> None:
        self._shard = shard
        self._step = step
        self._checkpoint = checkpoint
        self._findings: list[KexpError] = []
        self._buffer = bytearray(_CHUNK_BYTES)
        self._at = 0

    def run(self) -> list[KexpError]:
        """Return the faults of the shard, at most _MAX_FINDINGS and one that ended the pass."""
        try:
            self._read_to(first_section_floor(self._shard.superblock.section_count))
            for section in self._shard.sections:
                self._read_to(section.offset_bytes)  # zeros, as was seen at open
                self._check_section(section)
        except KexpError as error:
            return [*self._findings, error]
        return self._findings

    def _read(self, length: int) -> memoryview:
        """Return the next `length` bytes, valid until the next call."""
        self._checkpoint()
        if length > len(self._buffer):
            self._buffer = bytearray(length)
        view = memoryview(self._buffer)[:length]
        done = 0
        while done < length:
            with os_errors(self._shard.path, "read"):
                count = os.preadv(self._shard.fd, [view[done:]], self._at + done)
            if count == 0:
                raise KexpError(
                    "E_FILE_SIZE",
                    f"ends early, {self._shard.size_bytes} bytes when it was opened",
                    file=self._shard.path,
                    offset_bytes=self._at + done,
                )
            done += count
        self._at += length
        self._step(length)
        return view

    def _read_to(self, end: int) -> None:
        while self._at < end:
            self._read(min(_CHUNK_BYTES, end - self._at))

    def _found(self, error: KexpError) -> None:
        if len(self._findings) < _MAX_FINDINGS:
            self._findings.append(error)

    def _check_section(self, section: Section) -> None:
        if section.tag == BLKS:
            self._check_blocks()
        elif section.codec == CODEC_RAW:
            self._check_raw(section)
        else:
            self._check_compressed(section)

    def _check_raw(self, section: Section) -> None:
        crc, sha = 0, hashlib.sha256()
        while self._at < section.end_bytes:
            data = self._read(min(_CHUNK_BYTES, section.end_bytes - self._at))
            crc = zlib.crc32(data, crc)
            sha.update(data)
        if crc != section.crc32:
            code, message = "E_SECTION_CRC", f"crc32 {crc:08x} != {section.crc32:08x}"
        elif sha.digest() != section.sha256:
            code = "E_SECTION_SHA256"
            message = f"sha256 {short(sha.digest())} != {short(section.sha256)}"
        else:
            return
        self._found(
            KexpError(
                code,
                f"section {section.name}: {message}",
                file=self._shard.path,
                offset_bytes=section.offset_bytes,
            )
        )

    def _check_compressed(self, section: Section) -> None:
        try:
            decode_section(section, bytes(self._read(section.stored_bytes)), file=self._shard.path)
        except KexpError as error:
            self._found(error)

    def _check_blocks(self) -> None:
        gaps = [_gaps(layout) for layout in self._shard.layouts]
        payloads = [layout.payload_bytes for layout in self._shard.layouts]
        for row in range(len(self._shard.entries)):
            entry = self._shard.entries[row]
            layout = int(entry["layout"])
            data = self._read(int(entry["block_bytes"]))
            fault = _block_fault(data, payloads[layout], gaps[layout], entry)
            if fault is not None:
                self._found(
                    KexpError(
                        *fault,
                        file=self._shard.path,
                        offset_bytes=int(entry["offset_bytes"]),
                        layer=int(entry["layer"]),
                        expert=int(entry["expert"]),
                    )
                )


def _block_fault(
    data: memoryview, payload_bytes: int, gaps: list[tuple[int, int]], entry: np.void
) -> tuple[str, str] | None:
    """Return (code, message) of what is wrong with a block, or None."""
    payload = data[:payload_bytes]
    crc, stored_crc = zlib.crc32(payload), int(entry["crc32"])
    if crc != stored_crc:
        return "E_BLOCK_CRC", f"crc32 {crc:08x} != {stored_crc:08x}"
    digest, stored = hashlib.sha256(payload).digest(), bytes(entry["sha256"])
    if digest != stored:
        return "E_BLOCK_SHA256", f"sha256 {short(digest)} != {short(stored)}"
    if not all(_is_zero(data[begin:end]) for begin, end in gaps):
        return "E_PADDING", "padding in the block is not zero"
    return None


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


def _is_zero(data: memoryview) -> bool:
    return not np.frombuffer(data, dtype=np.uint8).any()
