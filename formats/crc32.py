"""CRC-32 (that of zlib), computed as fast as what is installed can.

It stands on the way of every block that is read. zlib does 1 to 5 GB/s, depending on who built it;
ISA-L folds with carry-less multiplication, 25 to 30 GB/s on the same machines.
"""

from __future__ import annotations

from functools import lru_cache

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this machine
    from zlib import crc32

__all__ = ["combined_crc32", "crc32"]

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
