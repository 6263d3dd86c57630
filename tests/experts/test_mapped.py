"""Mapped experts: cold ones are read by workers before the kernels see them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kandiga_run.container import Model
from kandiga_run.experts.mapped import MappedStore
from kandiga_run.experts.pages import absent_bytes, address_of, read_into_page_cache
from packed import PackedModels

# Experts of 1 MB: opening a container touches its index, and the kernel may keep a few hundred
# kilobytes around each page that is mapped.
LARGE = {"hidden_size": 1024, "moe_intermediate_size": 512}


@pytest.fixture
def cold(packed: PackedModels, tmp_path: Path) -> Model:
    """A model whose experts are not in the page cache.

    A copy, since pages that anybody has mapped cannot be dropped.
    """
    container = packed("qwen3_moe", overrides=LARGE).container
    with Model.open(shutil.copytree(container, tmp_path / "container")) as model:
        for shard in model.container.shards:
            os.fsync(shard.fd)  # only clean pages can be dropped
            os.posix_fadvise(shard.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if absent(model, 0, 1) == 0:
            pytest.skip("this filesystem keeps its pages")
        yield model


def absent(model: Model, layer: int, expert: int) -> int:
    extent = model.container.extent(layer, expert)
    base = address_of(memoryview(model.container.shards[extent.shard].mmap))
    return absent_bytes(base + extent.offset_bytes, extent.payload_bytes)


@pytest.mark.parametrize("check", ["off", "first-touch"])
def test_cold_experts_are_resident_when_they_arrive(cold: Model, check: str) -> None:
    store = MappedStore(cold.container, check=check)
    wanted = np.array([1, 5, 2], np.int32)
    expected = sum(absent(cold, 0, expert) for expert in wanted.tolist())
    with store.fetch(0, wanted) as arrivals:
        for expert, _ in arrivals:
            assert absent(cold, 0, expert) == 0
    assert store.stats.experts_read > 0
    assert 0 < store.stats.bytes_read <= expected
    before = store.stats.snapshot()
    with store.fetch(0, wanted) as arrivals:
        assert len(list(arrivals)) == 3
    assert store.stats.minus(before).experts_reused == 3
    assert store.stats.minus(before).bytes_read == 0
    store.close()


def test_reading_a_range_brings_in_no_more_than_its_pages(cold: Model) -> None:
    """Readahead would spend the disk's time, and the memory, on experts nobody asked for."""
    store = MappedStore(cold.container, check="off")
    with store.fetch(0, np.array([1], np.int32)) as arrivals:
        assert len(list(arrivals)) == 1
    assert absent(cold, 1, 6) > 0
    store.close()


def test_where_mincore_does_not_tell(cold: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a file of somebody else Linux calls every page resident: then everything is read once."""
    monkeypatch.setattr("kandiga_run.experts.mapped.mincore_tells_the_truth", lambda _path: False)
    store = MappedStore(cold.container, check="off")
    for reads in (1, 0):
        before = store.stats.snapshot()
        with store.fetch(0, np.array([4], np.int32)) as arrivals:
            assert [expert for expert, _ in arrivals] == [4]
        assert store.stats.minus(before).experts_read == reads
        assert absent(cold, 0, 4) == 0
    store.close()


def test_reading_past_the_end_is_noticed(cold: Model) -> None:
    shard = cold.container.shards[0]
    with pytest.raises(EOFError):
        read_into_page_cache(shard.fd, shard.size_bytes - 100, 1 << 20)
