"""zstd frames, written by hand."""

from __future__ import annotations

import struct


def rows_of_zstd(raw: bytes) -> bytes:
    """Return zstd blocks for `raw`: runs of 64 or more as RLE blocks, the rest as raw blocks."""
    blocks: list[tuple[int, bytes, int]] = []
    at = 0
    while at < len(raw):
        run = 1
        while at + run < len(raw) and raw[at + run] == raw[at]:
            run += 1
        if run >= 64:
            blocks.append((1, raw[at : at + 1], run))
            at += run
            continue
        end = at + 1
        while end < len(raw) and raw[end : end + 64] != raw[end : end + 1] * 64:
            end += 1
        blocks.append((0, raw[at:end], end - at))
        at = end
    out = b""
    for index, (kind, data, size) in enumerate(blocks):
        head = size << 3 | kind << 1 | (index == len(blocks) - 1)
        out += struct.pack("<I", head)[:3] + data
    return out


ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_BLOCK_BYTES = 128 << 10


def frame(raw: bytes) -> bytes:
    """A single-segment frame: descriptor 0xA0, four bytes of content size."""
    return ZSTD_MAGIC + b"\xa0" + struct.pack("<I", len(raw)) + rows_of_zstd(raw)


def frame_of_pairs(raw: bytes, begin: int, end: int) -> bytes:
    """Return a frame for `raw`, of which begin..end is two bytes over and over.

    All but the first pair of them are compressed blocks of no literals and one sequence: a match at
    distance 2, of 65539 bytes or more. The three codes of the sequence are tables of one entry.
    """
    plain, left = raw[: begin + 2], end - begin - 2
    blocks = [(0, len(plain), plain)]
    while left:
        length = -(-left // -(-left // ZSTD_BLOCK_BYTES))  # all about equal
        bits = 1 << 18 | 1 << 16 | (length - 65539)  # end mark, distance 2 (+ 3 is 4 + 1), length
        body = b"\x00" + b"\x01\x54" + bytes((0, 2, 52)) + struct.pack("<I", bits)[:3]
        blocks.append((2, len(body), body))
        left -= length
    blocks.append((0, len(raw) - end, raw[end:]))
    out = ZSTD_MAGIC + b"\xa0" + struct.pack("<I", len(raw))
    for kind, size, body in blocks:
        is_last = body is blocks[-1][2]
        out += struct.pack("<I", size << 3 | kind << 1 | is_last)[:3] + body
    return out
