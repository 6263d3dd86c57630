"""Work that goes on while its caller does something else."""

import threading

import pytest

from kandiga_run.background import BackgroundJob, GaveUp, unless


def test_waiting_ends_when_the_work_is_done() -> None:
    go_on, done = threading.Event(), []

    def work(_: GaveUp) -> None:
        go_on.wait(10)
        done.append(True)

    job = BackgroundJob("test", work)
    assert not done
    go_on.set()
    job.wait()
    assert done
    job.wait()
    job.close()


def test_what_went_wrong_is_raised_for_each_who_waits() -> None:
    def work(_: GaveUp) -> None:
        raise OSError("no such disk")

    job = BackgroundJob("test", work)
    for _ in range(2):
        with pytest.raises(OSError, match="no such disk"):
            job.wait()
    job.close()


def test_closing_ends_it_early() -> None:
    started, pieces = threading.Event(), []

    def work(gave_up: GaveUp) -> None:
        for number in range(1000):
            unless(gave_up, lambda number=number: pieces.append(number))()
            started.set()
            threading.Event().wait(0.001)

    job = BackgroundJob("test", work)
    started.wait(10)
    job.close()
    job.close()
    assert 0 < len(pieces) < 1000
