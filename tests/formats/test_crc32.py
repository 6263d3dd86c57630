"""CRC-32: fast, and of stretches put together."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from formats.crc32 import combined_crc32, crc32


@given(st.lists(st.binary(max_size=200)))
def test_checksums_of_stretches_give_that_of_the_whole(stretches: list[bytes]) -> None:
    crc32 = 0
    for stretch in stretches:
        crc32 = combined_crc32(crc32, zlib.crc32(stretch), len(stretch))
    assert crc32 == zlib.crc32(b"".join(stretches))


def test_long_stretches() -> None:
    for length in (1 << 20, (1 << 20) + 1, 3_000_001):
        data = bytes(length)
        assert combined_crc32(zlib.crc32(b"kexp"), zlib.crc32(data), length) == zlib.crc32(
            b"kexp" + data
        )


def test_whoever_computes_it_it_is_the_crc32_of_zlib() -> None:
    data = bytes(range(256)) * 300
    for length in (0, 1, 15, 16, 17, 255, 4096, len(data)):
        assert crc32(data[:length]) == zlib.crc32(data[:length])
        assert crc32(memoryview(data)[3:length], 12345) == zlib.crc32(data[3:length], 12345)
