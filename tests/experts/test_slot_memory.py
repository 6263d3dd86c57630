"""Slots that get their memory ahead of their use, by a thread."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kandiga_run.experts import slot_memory
from kandiga_run.experts.huge_memory import HugeMemory
from kandiga_run.experts.slot_memory import FreeSlots
from kandiga_run.experts.slots import SlotPool
from kandiga_run.memory.use import memory_use

SLOT_BYTES = 1 << 20
NUM_SLOTS = 64
RESERVE = 8


@pytest.fixture
def with_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small pools have what large ones have."""
    monkeypatch.setattr(slot_memory, "_WORTH_A_THREAD_BYTES", 0)
    monkeypatch.setattr(slot_memory, "_RESERVE_BYTES", RESERVE * SLOT_BYTES)
    monkeypatch.setattr(slot_memory, "_LEAST_RESERVE", 1)


@pytest.fixture
def free(with_thread: None) -> Iterator[FreeSlots]:
    memory = HugeMemory(SLOT_BYTES * NUM_SLOTS)
    free = FreeSlots(memory, SLOT_BYTES, NUM_SLOTS)
    if free._thread is None:
        pytest.skip("this system does not touch memory without changing it")
    yield free
    free.close()
    free.close()
    memory.close()


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true; a busy machine may take its time."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_a_reserve_is_kept_and_no_more_is_taken(free: FreeSlots) -> None:
    assert soon(lambda: len(free._touched) == RESERVE)
    taken = []
    while len(taken) < NUM_SLOTS:
        slot = free.take()
        if slot is not None:
            taken.append(slot)
        assert len(free._touched) <= RESERVE
    assert sorted(taken) == list(range(NUM_SLOTS))
    assert free.take() is None
    assert free.take_any() is None
    free.add(5)
    assert free.take() == 5


def test_any_slot_without_waiting(free: FreeSlots) -> None:
    assert sorted(free.take_any() for _ in range(NUM_SLOTS)) == list(range(NUM_SLOTS))


def test_changing_the_number_of_slots(free: FreeSlots) -> None:
    assert soon(lambda: len(free._touched) == RESERVE)
    used = {free.take_any() for _ in range(3)}
    with free.changing(20, used):
        assert not free._is_touching
        time.sleep(0.01)
        assert not free._is_touching
    slots = {free.take_any() for _ in range(17)}
    assert free.take_any() is None
    assert slots == set(range(20)) - used


def test_a_pool_with_a_thread_gives_everyone_a_slot(with_thread: None) -> None:
    pool = SlotPool(SLOT_BYTES, NUM_SLOTS)
    for turn in range(3):
        for layer in range(40):
            keys = [(layer, expert) for expert in range(8)]
            for key in keys:
                if not pool.find(key):
                    assert pool.take(key)
                pool.buffer(key)[:8] = bytes([layer]) * 8
            for key in keys:
                assert bytes(pool.buffer(key)[:8]) == bytes([layer]) * 8
                pool.unpin(key)
        pool.resize(16 if turn == 0 else NUM_SLOTS)
    pool.close()


def test_memory_given_back_stays_away(with_thread: None) -> None:
    pool = SlotPool(SLOT_BYTES, NUM_SLOTS)
    for expert in range(NUM_SLOTS):
        assert pool.take((0, expert))
        pool.buffer((0, expert))[:] = bytes(SLOT_BYTES)
    for expert in range(NUM_SLOTS):
        pool.unpin((0, expert))
    filled = memory_use().anonymous_bytes
    if filled is None:
        pytest.skip("this system does not tell anonymous memory apart")
    pool.resize(2)
    time.sleep(0.05)
    after = memory_use().anonymous_bytes
    assert after is not None
    # Two slots, rounded to huge pages at both ends, stay.
    assert filled - after >= (NUM_SLOTS - 6) * SLOT_BYTES
    pool.close()
    assert not any(thread.name == "slot-memory" for thread in threading.enumerate())
