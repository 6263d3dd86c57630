"""The checksum of the dense weights, from stretches that are read in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from formats.buffers import Buffer, as_bytes
from formats.crc32 import combined_crc32, crc32
from formats.direct import DirectFile
from formats.errors import KexpError
from formats.pieces import iter_pieces
from formats.reader import KexpSet
from formats.sections import DENS


class DenseCheck:
    """Compares section DENS with its CRC-32 while somebody reads it anyway.

    A program that brings dense weights in, in pieces and by several threads, shows each piece to
    `add`; `finish` reads only what nobody showed. Nothing is read twice.
    """

    def __init__(self, opened: KexpSet) -> None:
        self._shard = opened.shards[0]
        self._section = self._shard.section(DENS)
        self._pieces: dict[int, tuple[int, int]] = {}  # offset -> (length, crc32)

    def add(self, offset_bytes: int, data: Buffer) -> None:
        """Take into account what the file holds at an offset. Threads may call this at once."""
        view = as_bytes(data)
        self._pieces[offset_bytes] = len(view), crc32(view)

    def finish(self, checkpoint: Callable[[], None] = lambda: None) -> None:
        """Read what is missing, past the page cache, and compare.

        checkpoint: called between reads; may raise to end it.

        Raises:
            KexpError: E_SECTION_CRC, E_IO, E_FILE_SIZE.
        """
        file = DirectFile(self._shard.path, self._shard.fd)
        try:
            for begin_bytes, end_bytes in list(self._missing()):
                self._read(file, begin_bytes, end_bytes, checkpoint)
        finally:
            file.close()
        actual = 0
        for offset_bytes in self._in_order():
            length, piece_crc32 = self._pieces[offset_bytes]
            actual = combined_crc32(actual, piece_crc32, length)
        if actual != self._section.crc32:
            raise KexpError(
                "E_SECTION_CRC",
                f"dense weights: crc32 {actual:08x} != {self._section.crc32:08x}",
                file=self._shard.path,
                offset_bytes=self._section.offset_bytes,
            )

    def _in_order(self) -> Iterator[int]:
        """Yield the offsets of pieces that overlap neither an earlier one nor the borders."""
        end = self._section.offset_bytes
        for offset_bytes, (length, _) in sorted(self._pieces.items()):
            if offset_bytes >= end and offset_bytes + length <= self._section.end_bytes:
                yield offset_bytes
                end = offset_bytes + length

    def _missing(self) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of what no piece covers."""
        end = self._section.offset_bytes
        for offset_bytes in self._in_order():
            if offset_bytes > end:
                yield end, offset_bytes
            end = offset_bytes + self._pieces[offset_bytes][0]
        if end < self._section.end_bytes:
            yield end, self._section.end_bytes

    def _read(
        self, file: DirectFile, begin_bytes: int, end_bytes: int, checkpoint: Callable[[], None]
    ) -> None:
        at = begin_bytes
        for piece in iter_pieces(self._shard, file, begin_bytes, end_bytes - begin_bytes):
            checkpoint()
            self.add(at, piece)
            at += len(piece)
