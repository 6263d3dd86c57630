"""Slots: how many, who loses one, what a budget buys, and reading past the page cache."""

import ctypes
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fetching import arrived
from formats import KexpError
from formats.direct import DirectFile
from kandiga_run.container import Model
from kandiga_run.errors import RunError
from kandiga_run.experts import slot_fetch
from kandiga_run.experts.owned import OwnedStore, divide_budget, smallest_budget
from kandiga_run.experts.pages import absent_bytes, address_of
from kandiga_run.experts.slots import SlotPool
from kandiga_run.memory.use import memory_use
from packed import PackedModels
from wrong_bit import flip_bit


@pytest.fixture
def model(packed: PackedModels) -> Model:
    with Model.open(packed("mixtral").container) as model:
        yield model


def test_more_experts_than_slots_arrive_in_waves(model: Model) -> None:
    store = OwnedStore(model.container, smallest_budget(model.container))
    everything = list(range(8))
    for layer in (0, 1, 0):
        assert sorted(arrived(store, model.container, layer, everything)) == everything
    assert store.stats.experts_read > 20  # two slots hold next to nothing between fetches
    store.close()


def test_a_pair_stays_valid_until_the_next_batch(model: Model) -> None:
    """All of a batch is there at once, also when slots are few."""
    store = OwnedStore(model.container, 3 * model.container.layout(0).block_bytes)
    length = model.container.layout(0).payload_bytes
    with store.fetch(0, np.arange(8, dtype=np.int32)) as arrivals:
        for batch in arrivals.batches():
            assert 1 <= len(batch) <= 3
            for expert, address in batch:
                assert ctypes.string_at(address, length) == model.container.block(0, expert)
    store.close()


def test_what_is_asked_for_once_passes_and_what_is_asked_for_often_stays() -> None:
    """Two favourites among experts that come once each keep their slots from the start or later."""
    pool = SlotPool(4096, 6)

    def fetch(expert: int) -> bool:
        found = pool.find((0, expert))
        assert found or pool.take((0, expert))
        pool.unpin((0, expert))
        return found

    for expert in range(100, 106):  # the pool is full of strangers
        fetch(expert)
    hits = [fetch(expert) for turn in range(40) for expert in (1, 200 + turn, 2, 300 + turn)]
    assert sum(hits[-40:]) == 20  # both, every time
    assert sum(hits) > 60


def test_uses_long_ago_weigh_less() -> None:
    pool = SlotPool(4096, 4)
    for expert in [1, 2] * 200 + list(range(3, 9)) * 60:
        if not pool.find((0, expert)):
            assert pool.take((0, expert))
        pool.unpin((0, expert))
    assert not (pool.has((0, 1)) and pool.has((0, 2)))


def test_what_passes_uses_few_slots() -> None:
    """Their memory stays in the caches, where a disk fills it faster."""
    pool = SlotPool(4096, 64)
    for expert in range(64):
        assert pool.take((0, expert))
        pool.unpin((0, expert))
    slots = set()
    for layer in range(1, 50):
        for expert in range(8):
            key = (layer, expert)
            assert not pool.find(key)
            assert pool.take(key)
            slots.add(pool.address(key))
        for expert in range(8):
            pool.unpin((layer, expert))
    assert len(slots) == 8


def test_pinned_experts_never_lose_their_slots() -> None:
    pool = SlotPool(4096, 3)
    for expert in range(3):
        assert pool.take((0, expert))
    assert not pool.take((0, 3))
    pool.unpin((0, 1))
    assert pool.take((0, 3))
    assert [pool.has((0, expert)) for expert in range(4)] == [True, False, True, True]
    pool.discard((0, 3))
    assert pool.take((0, 4))


def test_a_budget_that_cannot_work_names_one_that_can(model: Model) -> None:
    smallest = smallest_budget(model.container)
    with pytest.raises(RunError, match=str(smallest)):
        OwnedStore(model.container, smallest - 1)
    store = OwnedStore(model.container, smallest)
    assert store.nbytes == smallest
    store.close()


@pytest.mark.parametrize("budget_bytes", [4 * 100 + 2 * 50, 1000, 1999, 10**6])
def test_a_divided_budget_is_kept(budget_bytes: int) -> None:
    classes = {100: 7, 50: 16, 200: 1}
    slots = divide_budget(classes, budget_bytes)
    assert sum(size * count for size, count in slots.items()) <= budget_bytes
    assert all(min(2, classes[size]) <= slots[size] <= classes[size] for size in classes)
    if budget_bytes >= 100 * 7 + 50 * 16 + 200:
        assert slots == classes


def test_layers_of_different_block_sizes(packed: PackedModels) -> None:
    """Each block size has its own slots, and the budget covers them together."""

    def larger_in_layer_1(path: str, _module: Any) -> dict[str, int]:
        return {"bits": 8 if "layers.1" in path else 4, "group_size": 32}

    folder = packed(
        "mixtral",
        quant_predicate=larger_in_layer_1,
        overrides={"hidden_size": 128, "intermediate_size": 128},
    ).container
    with Model.open(folder) as model:
        sizes = [model.container.layout(layer).block_bytes for layer in (0, 1)]
        assert sizes[0] < sizes[1]
        store = OwnedStore(model.container, 3 * sum(sizes))
        assert store.nbytes <= 3 * sum(sizes)
        for layer in (0, 1):
            assert sorted(arrived(store, model.container, layer, list(range(8)))) == list(range(8))
        store.close()


def test_resizing_keeps_the_store_right(model: Model) -> None:
    block = model.container.layout(0).block_bytes
    store = OwnedStore(model.container, 16 * block)
    everything = list(range(8))
    for num_slots in (16, 3, 16, 2, 9):
        store.resize(num_slots * block)
        assert store.nbytes == num_slots * block
        for layer in (0, 1):
            assert sorted(arrived(store, model.container, layer, everything)) == everything
    with pytest.raises(RunError, match="too few"):
        store.resize(block)
    store.close()


def test_slots_taken_away_are_given_back_to_the_system() -> None:
    num_slots, slot_bytes = 32, 1 << 20
    pool = SlotPool(slot_bytes, num_slots)
    before = memory_use().anonymous_bytes
    if before is None:
        pytest.skip("this system does not tell anonymous memory apart")
    for expert in range(num_slots):
        assert pool.take((0, expert))
        pool.buffer((0, expert))[:] = bytes([expert]) * slot_bytes
    filled = memory_use().anonymous_bytes
    for expert in range(num_slots):
        pool.unpin((0, expert))
    pool.resize(2)
    shrunk = memory_use().anonymous_bytes
    assert filled - before >= num_slots * slot_bytes
    assert shrunk - before <= 6 * slot_bytes  # two slots, rounded to huge pages at both ends
    assert pool.find((0, 1))
    assert pool.buffer((0, 1)) == bytes([1]) * slot_bytes
    pool.close()


def test_direct_reads_leave_the_page_cache_alone(model: Model) -> None:
    shard = model.container.shards[model.container.extent(0, 0).shard]
    extent = model.container.extent(0, 0)
    length = 8 * extent.block_bytes
    address = address_of(memoryview(shard.mmap)) + extent.offset_bytes
    os.fsync(os.open(shard.path, os.O_RDONLY))
    os.posix_fadvise(shard.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    absent = absent_bytes(address, length)
    file = DirectFile(shard.path, shard.fd)
    if not file.direct or absent == 0:
        pytest.skip("this filesystem has no O_DIRECT, or keeps its pages")
    file.close()
    store = OwnedStore(model.container, 1 << 20, check="off")
    with store.fetch(0, np.arange(8, dtype=np.int32)) as arrivals:
        assert len(list(arrivals)) == 8
    assert absent_bytes(address, length) == absent
    store.close()


def test_a_filesystem_without_direct_reads(tmp_path: Path) -> None:
    """Buffered reads give the same bytes; whether O_DIRECT is refused depends on the system."""
    data = os.urandom(3 * 16384)
    for folder in (Path("/dev/shm"), tmp_path):
        if not folder.is_dir():
            continue
        path = folder / f"kandiga-direct-{os.getpid()}"
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            for direct in (True, False):
                file = DirectFile(path, fd, direct=direct)
                pool = SlotPool(16384 * 2, 1)
                pool.take((0, 0))
                file.read_into(pool.buffer((0, 0)), 16384)
                assert pool.buffer((0, 0)) == data[16384:]
                assert file.read_into(pool.buffer((0, 0)), 32768) == 16384
                file.close()
                pool.close()
        finally:
            os.close(fd)
            path.unlink()


def test_experts_with_slots_need_no_fetch(model: Model) -> None:
    store = OwnedStore(model.container, 3 * model.container.layout(0).block_bytes)
    with store.fetch(0, np.array([4, 1], np.int32)) as arrivals:
        where = dict(arrivals)
    assert store.addresses(0, np.array([1, 7], np.int32)) is None
    found = store.addresses(0, np.array([1, 4], np.int32))
    assert found.tolist() == [where[1], where[4]]
    arrived(store, model.container, 0, [0])
    arrived(store, model.container, 0, [2])  # passes through the slot of 4
    assert store.addresses(0, np.array([4], np.int32)) is None
    assert store.addresses(0, np.array([0, 1], np.int32)) is not None
    store.close()


def test_what_was_read_ahead_is_not_read_again(model: Model) -> None:
    store = OwnedStore(model.container, 8 * model.container.layout(0).block_bytes)
    store.read_ahead(1, [6, 2, 5])
    assert store.stats.experts_read == 3
    assert store.addresses(1, np.array([2], np.int32)) is None  # it may be half written
    assert sorted(arrived(store, model.container, 1, [2, 3, 6])) == [2, 3, 6]
    assert store.stats.experts_read == 4
    assert arrived(store, model.container, 1, [5]) == [5]  # nobody wanted it, and there it is
    assert store.stats.experts_read in (4, 5)
    store.close()


def test_reading_ahead_for_a_layer_that_does_not_come(model: Model) -> None:
    store = OwnedStore(model.container, 4 * model.container.layout(0).block_bytes)
    store.read_ahead(1, [0, 1, 2, 3])  # all slots but one
    assert store.stats.experts_read == 3
    everything = list(range(8))
    for layer in (0, 1):
        assert sorted(arrived(store, model.container, layer, everything)) == everything
    store.read_ahead(0, [1])
    store.resize(smallest_budget(model.container))
    assert sorted(arrived(store, model.container, 1, everything)) == everything
    store.read_ahead(0, [3])
    store.close()


@pytest.mark.parametrize("long", [1, 1000], ids=["in order", "at once"])
@pytest.mark.parametrize("num_slots", [2, 6, 16])
def test_most_of_the_next_layer_is_read_beside_this_one(
    model: Model, num_slots: int, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_fetch, "_LONG", long)
    store = OwnedStore(model.container, num_slots * model.container.layout(0).block_bytes)
    everything = list(range(8))
    for _ in range(3):
        for layer in (0, 1):  # nothing follows layer 1
            with store.fetch(layer, np.array(everything, np.int32)) as arrivals:
                store.expect_most_of_next(layer)
                assert sorted(expert for expert, _ in arrivals) == everything
        assert sorted(arrived(store, model.container, 0, [7, 3])) == [3, 7]  # not what comes next
    stats = store.stats
    assert 0 < stats.experts_read_ahead_used == stats.experts_read_ahead
    if num_slots == 16:
        assert stats.experts_read == 16
    with store.fetch(0, np.array([5], np.int32)) as arrivals:
        store.expect_most_of_next(0)
        list(arrivals)
    assert sorted(arrived(store, model.container, 0, everything)) == everything
    assert sorted(arrived(store, model.container, 1, everything)) == everything
    store.close()


def test_damage_read_ahead_matters_only_if_wanted(packed: PackedModels, tmp_path: Path) -> None:
    folder = shutil.copytree(packed("mixtral").container, tmp_path / "container")
    with Model.open(folder) as model:
        extent = model.container.extent(1, 4)
        path = model.container.shards[extent.shard].path
    flip_bit(path, extent.offset_bytes + 10, 4)
    with Model.open(folder) as model:
        store = OwnedStore(model.container, 8 * model.container.layout(0).block_bytes)
        for _ in range(2):
            store.read_ahead(1, [4, 2])
            assert arrived(store, model.container, 1, [2]) == [2]
        store.read_ahead(1, [4])
        with (
            pytest.raises(KexpError, match="layer 1 expert 4"),
            store.fetch(1, np.array([4, 3], np.int32)) as arrivals,
        ):
            list(arrivals)
        assert sorted(arrived(store, model.container, 1, [2, 3])) == [2, 3]
        store.close()
