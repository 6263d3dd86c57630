"""Checksums and the hash tree.

CRC-32 answers "is this block as it was written" on the hot path; SHA-256 answers "is this the same
model". Both are in every standard library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from formats.sections import Section
from formats.superblock import Superblock


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
