"""Which settings a search tries and takes, on machines whose speeds are known."""

import time
from collections.abc import Callable

import pytest

from kandiga_run.tune.outcome import ANSWER_TOKENS, PROMPT_TOKENS, Outcome, Speed, Trial
from kandiga_run.tune.search import Room, Search
from kandiga_run.tune.settings import Settings
from kandiga_run.tune.summary import verdict

GB = 1_000_000_000
FOREVER_SECONDS = 1000.0
ROOM = Room(most_bytes=16 * GB, enough_bytes=40 * GB, can_map=False, num_cpus=4, num_readers=4)

Decode = Callable[[Settings], float]


def searched(
    decode: Decode, room: Room = ROOM, *, reads: bool = True, prefill: Decode = lambda _: 100.0
) -> Search:
    """Search a machine on which settings decode so many tokens a second."""

    def measure(settings: Settings, seconds: float) -> Trial:
        return Trial(
            settings,
            (Speed(prefill(settings), decode(settings)),),
            residency="mapped" if settings.residency == "mapped" else "owned",
            bytes_read_per_token=1e6 if reads else 0.0,
        )

    search = Search(measure, room, FOREVER_SECONDS)
    search.run()
    return search


def best_of(search: Search) -> Settings:
    best = search.outcome.best
    assert best is not None
    return best.settings


def memory_of(settings: Settings) -> float:
    return (settings.memory_bytes or 11 * GB) / GB


class TestSizes:
    def test_the_peak_between_halves_is_found(self) -> None:
        search = searched(lambda s: 20 - abs(memory_of(s) - 6))
        assert best_of(search).residency == "owned"
        assert memory_of(best_of(search)) == pytest.approx(6, abs=1)
        assert search.outcome.finished

    def test_the_largest_allowed_is_never_passed(self) -> None:
        search = searched(memory_of)
        tried = [trial.settings.memory_bytes or 0 for trial in search.outcome.trials]
        assert max(tried) == best_of(search).memory_bytes == 16 * GB

    def test_more_than_the_model_is_not_tried(self) -> None:
        room = Room(16 * GB, 3 * GB, can_map=False, num_cpus=1, num_readers=4)
        search = searched(memory_of, room)
        assert max(t.settings.memory_bytes or 0 for t in search.outcome.trials) == 3 * GB

    def test_a_limit_holds_for_the_usual_settings_too(self) -> None:
        room = Room(4 * GB, 40 * GB, can_map=False, num_cpus=1, num_readers=4, limit_bytes=4 * GB)
        search = searched(lambda s: 1 / memory_of(s), room)
        tried = [trial.settings.memory_bytes for trial in search.outcome.trials]
        assert tried[0] == 4 * GB
        assert all(size is not None and size <= 4 * GB for size in tried)

    def test_sizes_below_one_that_cannot_work_are_left_out(self) -> None:
        def measure(settings: Settings, seconds: float) -> Trial:
            if (settings.memory_bytes or 11 * GB) < 5 * GB:
                return Trial(settings, error="cannot work; the smallest that works is 5GB")
            return Trial(settings, (Speed(100, 10),), "owned", 1e6)

        search = Search(measure, ROOM, FOREVER_SECONDS)
        search.run()
        failed = [trial.settings.memory_bytes for trial in search.outcome.trials if trial.error]
        assert failed == [4 * GB]
        assert search.outcome.best is search.outcome.usual


class TestOtherSettings:
    def test_mapped_experts_are_tried_where_they_fit(self) -> None:
        room = Room(16 * GB, 10 * GB, can_map=True, num_cpus=1, num_readers=4)
        search = searched(lambda s: 20.0 if s.residency == "mapped" else 10.0, room)
        assert best_of(search) == Settings(residency="mapped")
        without = searched(lambda s: 10.0)
        assert not any(t.settings.residency == "mapped" for t in without.outcome.trials)

    def test_more_readers(self) -> None:
        def decode(settings: Settings) -> float:
            return {4: 10.0, 8: 12.0, 16: 11.0}.get(settings.num_readers or 4, 5.0)

        assert best_of(searched(decode)).num_readers == 8

    def test_readers_do_not_matter_where_nothing_is_read(self) -> None:
        search = searched(lambda s: 10.0, reads=False)
        assert all(trial.settings.num_readers is None for trial in search.outcome.trials)

    def test_fewer_threads(self) -> None:
        assert best_of(searched(lambda s: 13.0 if s.num_threads == 3 else 10.0)).num_threads == 3

    def test_fewer_threads_that_make_prompts_slow_are_not_faster(self) -> None:
        search = searched(
            lambda s: 10.5 if s.num_threads == 3 else 10.0,
            prefill=lambda s: 40.0 if s.num_threads == 3 else 100.0,
        )
        assert best_of(search) == Settings()


class TestTime:
    def test_nothing_is_begun_that_would_end_too_late(self) -> None:
        def measure(settings: Settings, seconds: float) -> Trial:
            time.sleep(0.1)
            return Trial(settings, (Speed(100, 10),), "owned", 1e6)

        search = Search(measure, ROOM, 0.45)
        started = time.monotonic()
        search.run()
        assert time.monotonic() - started < 0.6
        assert 1 < len(search.outcome.trials) < 5
        assert not search.outcome.finished
        assert search.outcome.notes == ["the time was over before everything was tried"]

    def test_a_failure_of_the_usual_settings_ends_it(self) -> None:
        search = Search(lambda s, _: Trial(s, error="no"), ROOM, FOREVER_SECONDS)
        search.run()
        assert [trial.error for trial in search.outcome.trials] == ["no"]
        assert search.outcome.best is None
        assert verdict(search.outcome) == "nothing could be measured"

    def test_what_is_known_outlives_an_interruption(self) -> None:
        seen: list[Settings] = []

        def measure(settings: Settings, seconds: float) -> Trial:
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(settings)
            return Trial(settings, (Speed(100, 10),), "owned", 1e6)

        search = Search(measure, ROOM, FOREVER_SECONDS)
        with pytest.raises(KeyboardInterrupt):
            search.run()
        assert [trial.settings for trial in search.outcome.trials] == seen
        assert not search.outcome.finished


class TestNoise:
    """A machine whose moods are larger than the gain must not be told that something is faster."""

    def test_the_usual_settings_stay_without_a_clear_gain(self) -> None:
        moods = iter(range(1000))
        search = searched(lambda s: 10.0 + next(moods) % 3 * 0.5)
        assert best_of(search) == Settings()
        assert "reliably" in verdict(search.outcome)

    def test_the_fastest_is_measured_again(self) -> None:
        search = searched(lambda s: 20.0 if s.memory_bytes == 8 * GB else 10.0)
        runs = {str(t.settings): len(t.speeds) for t in search.outcome.trials}
        assert runs["owned, 8 GB"] == runs["auto"] == 3
        assert verdict(search.outcome).startswith("fastest: owned, 8 GB; ")

    def test_one_run_of_each_proves_little(self) -> None:
        outcome = Outcome()
        usual = outcome.put(Trial(Settings(), (Speed(100, 10.0),)))
        outcome.put(Trial(Settings("mapped"), (Speed(100, 10.5),)))
        assert outcome.best is usual
        surely = outcome.put(Trial(Settings("owned", GB), (Speed(100, 20.0), Speed(100, 21.0))))
        assert outcome.best is not surely  # the usual settings had one run
        outcome.put(Trial(Settings(), (Speed(100, 10.1),)))
        assert outcome.best is surely

    def test_the_time_of_an_exchange(self) -> None:
        speed = Speed(prefill=PROMPT_TOKENS / 2, decode=ANSWER_TOKENS / 3)
        assert speed.exchange_seconds == pytest.approx(5)
