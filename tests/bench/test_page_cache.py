"""Dropping files from the page cache and seeing it, on the disk the tests run on."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from kandiga_run.bench.page_cache import bring_in, drop, resident

SIZE = 5 * (1 << 20) + 123
# Pages the kernel is still busy with stay for a moment.
FEW_BYTES = 256 << 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(3).bytes(SIZE))
    if (drop([path]).resident_bytes or 0) > FEW_BYTES:
        pytest.skip("this file system keeps its files in memory, or does not say what it keeps")
    return path


def test_what_is_dropped_is_gone_and_can_be_brought_back(file: Path) -> None:
    assert drop([file]).total_bytes == SIZE
    there = bring_in([file])
    assert there.resident_bytes == SIZE
    assert there.share == 1.0
    assert resident([file]) == there
    left = drop([file]).share
    assert left is not None
    assert left < 0.05


def test_pages_that_somebody_has_mapped_are_reported(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[::4096]) > 0
        left = drop([file]).resident_bytes
        assert left is not None
        assert left > SIZE / 2


def test_no_files_have_no_share() -> None:
    assert resident([]).share is None


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        drop([tmp_path / "none"])
