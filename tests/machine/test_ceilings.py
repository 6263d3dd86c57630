"""The ceilings: measured with the real memory and disk, on small amounts of both."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cython_kernels import READ_ORDERS, read_memory, read_ranges
from kandiga_run.machine.ceilings import disk_ceiling, kernel_ceiling, memory_ceiling

MIB = 1 << 20


def aligned(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return array[-array.ctypes.data % 64 :]


@pytest.mark.parametrize("order", READ_ORDERS)
def test_the_read_loop_loads_every_byte(order: int) -> None:
    rng = np.random.default_rng(1)
    array = aligned(rng.integers(0, 256, 2 * MIB + 64, np.uint8))[: 2 * MIB]
    assert read_memory(array, order) == np.bitwise_xor.reduce(array.view(np.uint64))


@pytest.mark.parametrize("order", READ_ORDERS)
def test_ranges_are_read_without_what_follows_their_last_two_kib(order: int) -> None:
    array = aligned(np.random.default_rng(2).integers(0, 256, MIB + 64, np.uint8))[:MIB]
    begins, lengths = [0, 64, 8192], [4096 + 100, 1000, 6144]
    starts = np.array(begins, np.uint64) + np.uint64(array.ctypes.data)
    words = array.view(np.uint64)
    expected = np.bitwise_xor.reduce(words[: 4096 // 8]) ^ np.bitwise_xor.reduce(
        words[8192 // 8 : (8192 + 6144) // 8]
    )
    assert read_ranges(starts, np.array(lengths, np.uint64), order) == expected
    assert read_ranges(np.empty(0, np.uint64), np.empty(0, np.uint64), order) == 0


def test_the_read_loop_refuses_what_it_cannot_read() -> None:
    array = aligned(np.zeros(4096, np.uint8))
    with pytest.raises(ValueError, match="order: 9, expected 0 to"):
        read_memory(array, 9)
    with pytest.raises(ValueError, match="expected a multiple of 64"):
        read_memory(array[1:], 0)
    with pytest.raises(ValueError, match="lengths: 1, expected 2"):
        read_ranges(np.zeros(2, np.uint64), np.zeros(1, np.uint64))


def test_memory_is_between_a_slow_board_and_a_large_server() -> None:
    ceiling = memory_ceiling(64 * MIB, seconds=0.03)
    assert 1e8 < ceiling.small_pages < 1e13
    assert ceiling.best == max(ceiling.small_pages, ceiling.huge_pages or 0)


def test_disk_reads_of_a_file_of_odd_length(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(np.random.default_rng(2).bytes(9 * MIB + 777))
    ceiling = disk_ceiling([path], 100_000, depth=2, seconds=0.05)
    assert ceiling.random > 1e5
    assert ceiling.sequential > 1e5
    assert ceiling.block_bytes == 102_400
    assert ceiling.depth == 2


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk_ceiling([tmp_path / "none"], 4096, depth=1, seconds=0.01)


def test_kernels_have_a_ceiling_in_every_arithmetic() -> None:
    assert kernel_ceiling("exact", num_tokens=16, seconds=0.01) > 1e6
    assert kernel_ceiling("int8", num_tokens=16, seconds=0.01) > 1e6
