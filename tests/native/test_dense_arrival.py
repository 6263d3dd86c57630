"""Dense weights that come while the caller does something else."""

import threading

import pytest

from kandiga_run.native.dense_arrival import DenseArrival, GaveUp, unless


def test_waiting_ends_when_the_weights_are_there() -> None:
    go_on, there = threading.Event(), []

    def bring_in(_: GaveUp) -> None:
        go_on.wait(10)
        there.append(True)

    arrival = DenseArrival(bring_in)
    assert not there
    go_on.set()
    arrival.wait()
    assert there
    arrival.wait()
    arrival.close()


def test_what_went_wrong_is_raised_for_each_who_waits() -> None:
    def bring_in(_: GaveUp) -> None:
        raise OSError("no such disk")

    arrival = DenseArrival(bring_in)
    for _ in range(2):
        with pytest.raises(OSError, match="no such disk"):
            arrival.wait()
    arrival.close()


def test_closing_ends_it_early() -> None:
    started, pieces = threading.Event(), []

    def bring_in(gave_up: GaveUp) -> None:
        for number in range(1000):
            unless(gave_up, lambda number=number: pieces.append(number))()
            started.set()
            threading.Event().wait(0.001)

    arrival = DenseArrival(bring_in)
    started.wait(10)
    arrival.close()
    arrival.close()
    assert 0 < len(pieces) < 1000
