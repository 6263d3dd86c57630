"""Made-up bytes at the speed of memory, the same ones whatever piece of them is asked for."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from formats.buffers import as_bytes

Words = NDArray[np.uint64]

# Pool and chunk stay in a core's second-level cache: filling then costs one pass over the output.
POOL_BYTES = 1 << 20
# A chunk takes some 9 us to fill, four times what the Python around it takes.
CHUNK_BYTES = 256 << 10

_WORD_BYTES = 8
_MASK = (1 << 64) - 1


@lru_cache(maxsize=4)
def random_pool(seed: int) -> Words:
    """Return POOL_BYTES of random words, and the first chunk of them once more at the end.

    From Philox, whose raw words numpy promises to keep the same in every version and on every
    machine.
    """
    words = np.random.Philox(key=seed).random_raw(POOL_BYTES // _WORD_BYTES)
    return wrapped(words.astype("<u8", copy=False))


def wrapped(pool: Words) -> Words:
    """Return POOL_BYTES of words with the first chunk once more at the end, read-only."""
    long = np.concatenate([pool, pool[: CHUNK_BYTES // _WORD_BYTES]])
    long.setflags(write=False)
    return long


def stream_key(seed: int, name: str) -> int:
    """Return 64 bits that stand for one stream."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{name}".encode()).digest()[:_WORD_BYTES], "little"
    )


def fill(out: memoryview, pool: Words, key: int, offset_bytes: int, *, disguise: bool) -> None:
    """Fill `out` with the bytes of a stream that begin at `offset_bytes`. For any thread.

    Chunk c of the stream is a chunk of the pool that begins at a place drawn from (key, c). With
    `disguise` it is XORed with a word drawn likewise: uniform bits stay uniform, and two chunks
    that overlap in the pool do not repeat each other.

    This is 16 GB/s on an x86-64 core where numpy's Philox gives 1.9 and its PCG64 3.1, and a packer
    wants its processor time for SHA-256. It is no cryptography and need not be: what a measurement
    wants of weights is that they differ from block to block, do not compress (zstd: by nothing),
    and have the mean and spread of random numbers.

    Args:
        out: bytes.
        pool: from `random_pool` or `wrapped`.
        key: from `stream_key`.
        disguise: for bits that mean numbers whatever they are, and not for floats.
    """
    done = 0
    while done < len(out):
        chunk, inside = divmod(offset_bytes + done, CHUNK_BYTES)
        count = min(CHUNK_BYTES - inside, len(out) - done)
        place, word = _draw(key, chunk)
        piece = out[done : done + count]
        _fill_piece(piece, pool, place * _WORD_BYTES + inside, word if disguise else 0)
        done += count


def _fill_piece(out: memoryview, pool: Words, start_bytes: int, word: int) -> None:
    whole = start_bytes % _WORD_BYTES == 0 and len(out) % _WORD_BYTES == 0
    if whole:
        start = start_bytes // _WORD_BYTES
        target = np.frombuffer(out, "<u8")
        np.bitwise_xor(pool[start : start + target.size], np.uint64(word), out=target)
        return
    first = start_bytes // _WORD_BYTES
    last = -(-(start_bytes + len(out)) // _WORD_BYTES)
    words = pool[first:last] ^ np.uint64(word)
    begin = start_bytes - first * _WORD_BYTES
    out[:] = as_bytes(words)[begin : begin + len(out)]


def _draw(key: int, counter: int) -> tuple[int, int]:
    """Return a place in the pool, in words, and a word: two steps of SplitMix64."""
    state = key + 2 * counter * 0x9E3779B97F4A7C15
    place = _mix(state + 0x9E3779B97F4A7C15)
    word = _mix(state + 2 * 0x9E3779B97F4A7C15)
    return place % (POOL_BYTES // _WORD_BYTES), word


def _mix(state: int) -> int:
    state &= _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
