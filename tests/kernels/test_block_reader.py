"""Blocks read many at once: by the kernel's queue where there is one, and by threads."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cython_kernels import BlockReader

BLOCK = 8192
NUM_BLOCKS = 40


@pytest.fixture(params=[True, False], ids=["queue", "threads"])
def reader(request: pytest.FixtureRequest) -> Iterator[BlockReader]:
    reader = BlockReader(3, request.param)
    assert request.param or not reader.has_queue
    yield reader
    reader.close()


@pytest.fixture
def data(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    content = np.random.default_rng(0).bytes(NUM_BLOCKS * BLOCK)
    path = tmp_path / "blocks"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    yield fd, content
    os.close(fd)


def buffer_of(num_bytes: int) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, num_bytes)
    return memory, np.frombuffer(memory, np.uint8).ctypes.data


def test_every_block_arrives_in_its_place(reader: BlockReader, data: tuple[int, bytes]) -> None:
    fd, content = data
    memory, address = buffer_of(len(content))
    order = np.random.default_rng(1).permutation(NUM_BLOCKS).tolist()
    reads = [(fd, i * BLOCK, address + i * BLOCK, BLOCK, 1000 + i) for i in order]
    assert reader.start(reads[:25]) == 25
    done = reader.wait(20)
    assert 20 <= len(done) <= 25
    assert reader.start(reads[25:]) == 15
    while reader.under_way:
        done += reader.wait()
    assert sorted(done) == [(1000 + i, BLOCK) for i in range(NUM_BLOCKS)]
    assert memory[:] == content


def test_what_went_wrong_is_told(reader: BlockReader, data: tuple[int, bytes]) -> None:
    fd, content = data
    _, address = buffer_of(3 * BLOCK)
    end = len(content)
    reads = [
        (fd, end - 100, address, BLOCK, 1),
        (fd, end, address + BLOCK, BLOCK, 2),
        (10**6, 0, address + 2 * BLOCK, BLOCK, 3),
    ]
    assert reader.start(reads) == 3
    assert dict(reader.wait(3)) == {1: 100, 2: 0, 3: -errno.EBADF}


def test_more_than_may_be_under_way(reader: BlockReader, data: tuple[int, bytes]) -> None:
    fd, _ = data
    _, address = buffer_of(BLOCK)
    reads = [(fd, 0, address, BLOCK, tag) for tag in range(reader.capacity + 1)]
    with pytest.raises(ValueError, match="expected at most"):
        reader.start(reads)
    assert reader.under_way == 0
    with pytest.raises(ValueError, match="least: 1"):
        reader.wait()
    assert reader.wait(0) == []


def test_closing_waits_for_the_disk(data: tuple[int, bytes]) -> None:
    fd, content = data
    memory, address = buffer_of(len(content))
    for use_queue in (True, False):
        reader = BlockReader(2, use_queue)
        reader.start([(fd, 0, address, len(content), 0)])
        reader.close()
        reader.close()
        assert memory[:] == content
        with pytest.raises(ValueError, match="closed"):
            reader.wait(0)
        memory[:] = bytes(len(content))


def test_num_threads_is_checked() -> None:
    with pytest.raises(ValueError, match="num_threads: 0"):
        BlockReader(0)
