"""Checksums and the hash tree.

CRC-32 answers "is this block as it was written" on the hot path; SHA-256 answers "is this the same
model". Both are in every standard library.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from functools import lru_cache

from formats.sections import Section
from formats.superblock import Superblock


def crc32(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32 (zlib polynomial) of `data`."""
    return zlib.crc32(data)


# CRC-32 is a remainder of polynomials over GF(2). Bit 31 is the coefficient of x^0.
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def _multiply(a: int, b: int) -> int:
    """Return a * b modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=64)  # stretches of a file have few different lengths
def _shift(length_bytes: int) -> int:
    """Return x^(8 * length_bytes) modulo the polynomial."""
    power, square = _ONE, _ONE >> 8
    while length_bytes:
        if length_bytes & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        length_bytes >>= 1
    return power


def combined_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two byte strings joined, from theirs and the length of the second.

    >>> combined_crc32(crc32(b"dense "), crc32(b"weights"), 7) == crc32(b"dense weights")
    True
    """
    return _multiply(_shift(second_bytes), first) ^ second


def tree_root(items: Iterable[bytes]) -> bytes:
    """Return the Merkle tree hash of RFC 9162 section 2.1.1 over `items`, 32 bytes.

    Leaf: SHA-256(0x00 | item). Node: SHA-256(0x01 | left | right). A tree of n > 1 items splits at
    the largest power of two below n. Built as a binary counter: equal-sized neighbours merge as
    soon as they stand side by side, which gives the same shape without recursion.
    """
    peaks: list[tuple[int, bytes]] = []  # (number of leaves, hash), sizes strictly falling
    for item in items:
        peaks.append((1, hashlib.sha256(b"\x00" + item).digest()))
        while len(peaks) > 1 and peaks[-2][0] == peaks[-1][0]:
            _merge_last(peaks)
    if not peaks:
        return hashlib.sha256(b"").digest()
    while len(peaks) > 1:
        _merge_last(peaks)
    return peaks[0][1]


def _merge_last(peaks: list[tuple[int, bytes]]) -> None:
    right_size, right = peaks.pop()
    left_size, left = peaks.pop()
    node = hashlib.sha256(b"\x01" + left + right).digest()
    peaks.append((left_size + right_size, node))


def shard_root(superblock: Superblock, sections: Iterable[Section]) -> bytes:
    """Return the identity of one shard: its fixed header fields and its critical sections.

    Ancillary sections stay outside, so that a provenance note can be added without making another
    model of it. Offsets and stored lengths stay outside too: they follow from the raw lengths.
    """
    items = [superblock.identity()]
    items += [section.identity() for section in sections if section.is_critical]
    return tree_root(items)


def set_root(shard_roots: Iterable[bytes]) -> bytes:
    """Return the identity of a set of shards, in shard order."""
    return tree_root(shard_roots)
