"""`kandiga-run tune` as a user starts it, and what the other commands make of its findings."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kandiga_command import KANDIGA_RUN, TIMEOUT_SECONDS, kandiga_run
from kandiga_run.terminal.exit_codes import ExitCode
from kandiga_run.tune.keeping import Tuned, keep_tuned, place_of, tuned_path
from kandiga_run.tune.settings import Settings

SECONDS = "12"  # some trials of a tiny model, of two or three seconds each
OWNED = Settings("owned", 500_000_000, num_readers=2, num_threads=1)
TOLD = "tuned on 2026-11-23: owned, 500 MB, 2 readers, 1 thread"


@pytest.fixture
def tuned(model: Path, config_home: Path) -> Path:
    """Return a model that was tuned."""
    keep_tuned(Tuned(place_of(model), "native", OWNED, 1000, "2026-11-23"))
    return model


@pytest.mark.usefixtures("config_home")
class TestTune:
    def test_what_was_measured_is_told_and_kept(self, model: Path) -> None:
        done = kandiga_run("tune", model, "--seconds", SECONDS, "--json")
        assert done.returncode == ExitCode.OK, done.stderr
        result = json.loads(done.stdout)
        assert result["kandiga_tune"] == 1
        assert result["kept_in"] == str(tuned_path())
        trials = result["trials"]
        assert trials[0]["settings"] == Settings().arguments()
        assert trials[0]["residency"] == "mapped"
        assert len(trials) > 1
        for trial in trials:
            for speed in trial["speeds"]:
                assert min(speed["prefill"], speed["decode"]) > 0
        chosen = [trial for trial in trials if trial["settings"] == result["settings"]]
        assert len(chosen) == 1
        assert chosen[0]["exchange_seconds"] == result["best"]["exchange_seconds"]
        kept = json.loads(tuned_path().read_text())["tuned"][0]
        assert kept["settings"] == result["settings"]
        assert kept["measured"]["usual"] == result["usual"]

    def test_the_table_and_a_dry_run(self, model: Path) -> None:
        done = kandiga_run("tune", model, "--seconds", SECONDS, "--dry-run", "--memory", "600MB")
        assert done.returncode == ExitCode.OK, done.stderr
        assert "owned, 600 MB (usual)" in done.stdout
        # Which it is depends on the machine: a model this small may be fastest on one thread.
        verdict = done.stdout.splitlines()[-1]
        assert verdict.startswith("fastest: ") or "no other settings are reliably faster" in verdict
        assert done.stderr == ""  # no progress without a terminal
        assert not tuned_path().exists()

    def test_ctrl_c_tells_what_is_known_and_keeps_nothing(self, model: Path) -> None:
        process = subprocess.Popen(
            [*KANDIGA_RUN, "tune", model, "--seconds", "1000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_trials(process.pid, 2)  # the second one: something is known
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == ExitCode.INTERRUPTED
        assert err.splitlines() == ["kandiga-run: interrupted"]
        assert "auto: mapped (usual)" in out
        assert not tuned_path().exists()

    def test_a_limit_that_cannot_work(self, model: Path) -> None:
        done = kandiga_run("tune", model, "--memory", "10MB")
        assert done.returncode == ExitCode.FAILED
        assert "the smallest that works is" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not tuned_path().exists()

    def test_a_file_that_cannot_be_replaced_is_told_before_measuring(self, model: Path) -> None:
        tuned_path().parent.mkdir(parents=True)
        tuned_path().write_text("{}")
        done = kandiga_run("tune", model)
        assert done.returncode == ExitCode.FAILED
        assert "version None, wanted 1; remove the file" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_mistakes(self, model: Path, tmp_path: Path) -> None:
        assert kandiga_run("tune", model, "--show", "--forget").returncode == ExitCode.USAGE
        assert kandiga_run("tune", model, "--seconds", "0").returncode == ExitCode.USAGE
        assert kandiga_run("tune", tmp_path / "none").returncode == ExitCode.UNREADABLE
        assert kandiga_run("tune", tmp_path / "none", "--show").returncode == ExitCode.UNREADABLE

    def test_help_has_examples(self) -> None:
        done = kandiga_run("tune", "--help")
        assert "kandiga-run tune ./model --memory 8GB" in done.stdout
        assert "Exit codes" in done.stdout


def wait_for_trials(pid: int, count: int) -> None:
    """Wait until a process has begun so many measurements, one after the other."""
    seen: set[str] = set()
    deadline = time.monotonic() + 120
    while len(seen) < count and time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        seen |= {child for child in children if is_trial(child)}
        time.sleep(0.02)
    assert len(seen) >= count


def is_trial(pid: str) -> bool:
    try:
        return b"kandiga_run.bench.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class TestShowAndForget:
    def test_show(self, tuned: Path) -> None:
        done = kandiga_run("tune", tuned, "--show")
        assert done.stdout == "owned, 500 MB, 2 readers, 1 thread (native engine, 2026-11-23)\n"
        shown = json.loads(kandiga_run("tune", tuned, "--show", "--json").stdout)
        assert shown["tuned"]["settings"] == OWNED.arguments()

    def test_forget(self, tuned: Path) -> None:
        assert kandiga_run("tune", tuned, "--forget").stderr == "forgotten\n"
        assert "nothing was kept" in kandiga_run("tune", tuned, "--forget").stderr
        assert "nothing for this model" in kandiga_run("tune", tuned, "--show").stdout


class TestOtherCommands:
    def run(self, model: Path, *arguments: str) -> tuple[dict[str, Any], str]:
        """Return the stats and what was printed beside them."""
        done = kandiga_run(
            "run", model, "--raw", "Hello", "--max-tokens", "2", "--json", *arguments
        )
        assert done.returncode == ExitCode.OK, done.stderr
        return json.loads(done.stdout)["stats"], done.stderr

    def test_run_takes_tuned_settings_and_says_so(self, tuned: Path) -> None:
        stats, told = self.run(tuned, "--stats")
        assert (stats["residency"], stats["tuned"]) == ("owned", TOLD)
        assert TOLD in told

    def test_verbose_says_so_too(self, tuned: Path) -> None:
        _, told = self.run(tuned, "--verbose")
        assert f"kandiga-run: {TOLD}" in told.splitlines()

    def test_run_without_them(self, tuned: Path) -> None:
        stats, told = self.run(tuned, "--stats", "--no-tuned")
        assert (stats["residency"], stats["tuned"]) == ("mapped", None)
        assert "settings" not in told

    def test_a_choice_goes_first(self, tuned: Path) -> None:
        stats, _ = self.run(tuned, "--residency", "mapped")
        assert stats["residency"] == "mapped"
        assert stats["tuned"] == "tuned on 2026-11-23: auto, 2 readers, 1 thread"

    def test_a_damaged_file_stops_nobody(self, tuned: Path) -> None:
        tuned_path().write_text("nonsense")
        stats, _ = self.run(tuned)
        assert stats["residency"] == "mapped"
        assert "remove the file" in stats["tuned"]

    def test_chat(self, tuned: Path) -> None:
        done = subprocess.run(
            [*KANDIGA_RUN, "chat", tuned, "--max-tokens", "2", "--stats"],
            input="Hello\n",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert done.returncode == ExitCode.OK, done.stderr
        assert TOLD in done.stderr

    def test_bench(self, tuned: Path) -> None:
        short = ("--only", "decode", "--quick", "--no-ceilings", "--decode-tokens", "4")
        done = kandiga_run("bench", tuned, *short, "--json", "-")
        assert done.returncode == ExitCode.OK, done.stderr
        result = json.loads(done.stdout)
        assert TOLD in result["notes"]
        engine = result["measurements"][0]["engine"]
        assert (engine["residency"], engine["threads"]) == ("owned", 1)
        plain = json.loads(kandiga_run("bench", tuned, *short, "--json", "-", "--no-tuned").stdout)
        assert plain["measurements"][0]["engine"]["residency"] == "mapped"
