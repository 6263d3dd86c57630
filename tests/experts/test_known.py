"""Mapped experts seen in memory are not looked at again, until the kernel has taken pages back."""

import mmap
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from kandiga_run.container import Model
from kandiga_run.experts import mapped
from kandiga_run.experts.known import KnownExperts
from kandiga_run.experts.mapped import MappedStore
from packed import PackedModels


@pytest.fixture
def model(packed: PackedModels) -> Model:
    with Model.open(packed("mixtral").container) as model:
        yield model


def fetch(store: MappedStore, layer: int, experts: list[int]) -> dict[int, int]:
    with store.fetch(layer, np.array(experts, np.int32)) as arrivals:
        return dict(arrivals)


def major_fault(folder: Path) -> None:
    """Touch a page that has to come from the disk; skip where nothing has to."""
    path = folder / "cold"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            assert len(pages[:1]) == 1
        if resource.getrusage(resource.RUSAGE_SELF).ru_majflt == before:
            pytest.skip("this filesystem keeps its pages")


def test_the_kernel_is_asked_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MappedStore(model.container, check="off")
    asked: list[int] = []
    really = mapped.absent_bytes
    monkeypatch.setattr(
        mapped, "absent_bytes", lambda at, length: asked.append(at) or really(at, length)
    )
    wanted = np.array([5, 0, 3], np.int32)
    assert store.addresses(0, wanted) is None
    where = fetch(store, 0, [5, 0, 3])
    assert len(asked) >= 3
    asked.clear()
    for _ in range(3):
        assert store.addresses(0, wanted).tolist() == [where[5], where[0], where[3]]
        assert fetch(store, 0, [3, 5]) == {5: where[5], 3: where[3]}
    assert asked == []
    assert store.addresses(0, np.array([5, 1], np.int32)) is None
    assert store.stats.experts_reused >= 3 * 5
    store.close()


def test_a_page_read_from_disk_makes_it_ask_again(model: Model, tmp_path: Path) -> None:
    store = MappedStore(model.container)
    wanted = np.array([2, 6], np.int32)
    fetch(store, 1, [2, 6])
    assert store.addresses(1, wanted) is not None
    major_fault(tmp_path)
    assert store.addresses(1, wanted) is None
    fetch(store, 1, [2, 6])
    assert store.addresses(1, wanted) is not None
    store.close()


def test_own_reads_are_expected(tmp_path: Path) -> None:
    known = KnownExperts({0: [4096, 8192]})
    known.add(0, 1)
    with known.own_faults():
        major_fault(tmp_path)
    assert known.addresses(0, np.array([1], np.int32)).tolist() == [8192]


def test_checked_every_time_is_never_known(model: Model) -> None:
    store = MappedStore(model.container, check="always")
    for _ in range(2):
        fetch(store, 0, [1])
        assert store.addresses(0, np.array([1], np.int32)) is None
    store.close()
