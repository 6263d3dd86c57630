"""`kandiga-run bench` as a user starts it, on tiny containers: the numbers must agree."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kandiga_command import KANDIGA_RUN, TIMEOUT_SECONDS, kandiga_run
from kandiga_run.bench.memory_group import make_memory_group
from kandiga_run.errors import RunError
from kandiga_run.terminal.exit_codes import ExitCode
from packed import PackedModels

COMMAND = (*KANDIGA_RUN, "bench")
SMALL = ("--prefill", "16", "--depth", "0,40", "--decode-tokens", "5", "--repeats", "2")
CAP = "400MB"  # of which Python, numpy and their files take 100
# A bound leaves out what it does not know of, so a tiny model in the caches may beat the memory's
# ceiling; a real one may not by more than ceilings move.
MAX_FRACTION = 1.2

SAMPLE_FIELDS = {
    "kind",
    "size",
    "tokens",
    "seconds",
    "bytes_read",
    "process_read_bytes",
    "experts_requested",
    "experts_read",
    "time_split",
    "filling",
    "state_bytes",
    "kv_format",
    "in_place_bytes_per_second",
}
TIMES = {
    "dense",
    "routing",
    "expert",
    "attention",
    "kv_coding",
    "gated_delta",
    "read_wait",
    "sampling",
    "other",
}


def start(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return kandiga_run("bench", *arguments)


@pytest.fixture(scope="module")
def model(packed: PackedModels) -> Path:
    return packed("qwen3_5_moe").container


@pytest.fixture(scope="module")
def result(model: Path) -> dict[str, Any]:
    """Return the JSON of a whole run without a cap."""
    done = start(model, *SMALL, "--json", "-", "--threads", "1")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "decode at 0" in done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def may_limit_memory() -> bool:
    try:
        with make_memory_group(1 << 30):
            return True
    except RunError:
        return False


needs_group = pytest.mark.skipif(not may_limit_memory(), reason="no memory control groups here")


class TestNumbers:
    """What the JSON says about one run."""

    def test_everything_that_was_asked_for_is_there(self, result: dict[str, Any]) -> None:
        assert result["kandiga_bench"] == 1
        assert result["finished"]
        assert [each["cache"] for each in result["measurements"]] == ["cold", "warm"]
        cold, warm = result["measurements"]
        names = [(f["kind"], f.get("tokens", f.get("depth"))) for f in warm["figures"]]
        assert names == [("prefill", 16), ("decode", 0), ("decode", 40)]
        assert all(len(figure["samples"]) == 2 for figure in warm["figures"])
        assert [(f["kind"]) for f in cold["figures"]] == ["decode", "prefill"]
        assert warm["engine"]["threads"] == 1
        assert warm["engine"]["name"] == "native"
        assert {"cpu", "system", "versions", "isas"} <= result["machine"].keys()
        assert warm["starts"][0]["opening_seconds"] > 0
        assert warm["memory"][0]["container"]["total_bytes"] == result["model"]["total_bytes"]

    def test_tokens_times_and_speeds_agree(self, result: dict[str, Any]) -> None:
        for measurement in result["measurements"]:
            for figure in measurement["figures"]:
                speeds = sorted(s["tokens"] / s["seconds"] for s in figure["samples"])
                told = figure["tokens_per_second"]
                assert told["min"] == pytest.approx(speeds[0])
                assert told["max"] == pytest.approx(speeds[-1])
                assert told["min"] <= told["median"] <= told["max"]
                for sample in figure["samples"]:
                    assert sample.keys() == SAMPLE_FIELDS
                    assert sample["tokens"] == (16 if figure["kind"] == "prefill" else 5)

    def test_the_time_split_is_the_time(self, result: dict[str, Any]) -> None:
        for measurement in result["measurements"]:
            for figure in measurement["figures"]:
                for sample in figure["samples"]:
                    assert sample["time_split"].keys() == TIMES
                    assert sum(sample["time_split"].values()) == pytest.approx(
                        sample["seconds"], rel=0.02
                    )

    def test_every_decode_step_asks_for_its_experts(self, result: dict[str, Any]) -> None:
        model = result["model"]
        for figure in result["measurements"][1]["figures"][1:]:
            for sample in figure["samples"]:
                assert sample["experts_requested"] == 5 * model["num_layers"] * model["top_k"]
                assert sample["experts_read"] == 0
                assert sample["bytes_read"] == 0

    def test_made_up_depths_are_marked(self, result: dict[str, Any]) -> None:
        figures = result["measurements"][1]["figures"]
        assert [f["samples"][0]["filling"] for f in figures] == ["empty", "empty", "made-up"]
        assert any("made up" in note for note in result["notes"])

    def test_ceilings_are_measured_before_and_after(self, result: dict[str, Any]) -> None:
        ceilings = result["ceilings"]
        for when in ("before", "after"):
            assert ceilings[when]["memory"]["small_pages_bytes_per_second"] > 0
            assert ceilings[when]["disk"]["random_bytes_per_second"] > 0
            assert ceilings[when]["kernels"]["multiply_adds_per_second"] > 0
        for measurement in result["measurements"]:
            is_warm = measurement["cache"] == "warm"
            for figure in measurement["figures"]:
                assert 0 < figure["ceiling"]["fraction"] < MAX_FRACTION
                assert figure["ceiling"]["name"] in figure["ceiling"]["seconds"]
                in_place = figure["ceiling"]["in_place_fraction"]
                assert (in_place is None) == (figure["kind"] == "prefill" or not is_warm)
                assert in_place is None or 0 < in_place < MAX_FRACTION
                told = figure["forecast_tokens_per_second"]
                is_foretold = figure["kind"] == "decode" and is_warm
                assert (told is not None) == is_foretold
                assert told is None or 0 < told["low"] < told["high"]


@needs_group
class TestCap:
    """Inside a real control group."""

    def test_owned_experts_under_a_cap(self, model: Path, tmp_path: Path) -> None:
        file, plot = tmp_path / "figures.json", tmp_path / "curve.png"
        done = start(
            *(model, *SMALL, "--no-ceilings", "--memory-cap", f"{CAP},500MB"),
            *("--json", file, "--plot", plot),
        )
        assert done.returncode == ExitCode.OK, done.stderr
        assert "memory cap 400 MB (page cache included)" in done.stdout
        assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        measurements = json.loads(file.read_text())["measurements"]
        assert [each["memory_cap_bytes"] for each in measurements] == [400_000_000, 500_000_000]
        for each in measurements:
            assert each["memory_cap_enforced"]
            assert each["engine"]["residency"] == "owned"
            group = each["cgroup"]
            assert 0 < group["peak_bytes"] <= group["limit_bytes"] == each["memory_cap_bytes"]
            assert group["oom_kills"] == 0
        assert not leftovers()

    def test_misses_are_bytes_from_the_disk(self, model: Path) -> None:
        done = start(
            *(model, "--only", "decode", "--depth", "0", "--decode-tokens", "8"),
            *("--memory-cap", CAP, "--cache", "cold", "--json", "-", "--no-ceilings"),
        )
        assert done.returncode == ExitCode.OK, done.stderr
        result = json.loads(done.stdout)
        sample = result["measurements"][0]["figures"][0]["samples"][0]
        assert sample["bytes_read"] >= sample["experts_read"] * result["model"]["block_bytes"]

    def test_ctrl_c_tells_what_is_known_and_removes_the_group(self, model: Path) -> None:
        process = start_endless(model, "--json", "-")
        wait_for_group(process)
        time.sleep(3)  # long enough for some samples, usually; what follows holds without any
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == ExitCode.INTERRUPTED, err
        assert err.splitlines()[-1] == "kandiga-run: interrupted"
        result = json.loads(out)
        assert not result["finished"]
        assert result["ceilings"] == {"before": None, "after": None, "used": None}
        assert "not everything" in err
        assert not leftovers()

    def test_a_measuring_process_that_is_killed_is_a_failure_in_one_line(self, model: Path) -> None:
        process = start_endless(model)
        group = wait_for_group(process)
        os.kill(int((group / "cgroup.procs").read_text().split()[0]), signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == ExitCode.FAILED
        assert err.splitlines()[-1] == (
            "kandiga-run: 1 measurements failed; the first: "
            "the measuring process was ended by SIGKILL"
        )
        assert not leftovers()

    def test_the_measuring_process_ends_with_the_command(self, model: Path) -> None:
        process = start_endless(model)
        group = wait_for_group(process)
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 30
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (group / "cgroup.procs").read_text() == ""
        with make_memory_group(1 << 30):  # the next one tidies up
            assert not group.exists()

    def test_a_cap_that_cannot_work_names_one_that_can(self, model: Path) -> None:
        done = start(model, "--quick", "--no-ceilings", "--memory-cap", "80MB")
        assert done.returncode == ExitCode.FAILED
        assert "the smallest that works is" in done.stderr.splitlines()[-1]


def start_endless(model: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start a benchmark that goes on until it is stopped."""
    endless = ("--repeats", "1000000", "--seconds", "1000", "--no-ceilings", "--cache", "warm")
    decode = ("--only", "decode", "--depth", "0", "--decode-tokens", "4")
    return subprocess.Popen(
        [*COMMAND, model, *endless, *decode, "--memory-cap", CAP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leftovers() -> list[Path]:
    """Return groups of benchmarks that were not removed, except those of this very process."""
    found = []
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        found += [path for path in root.glob("**/kandiga-bench-*") if owner_is_gone(path)]
    return found


def owner_is_gone(path: Path) -> bool:
    return not Path(f"/proc/{path.name.split('-')[2]}").exists()


def wait_for_group(process: "subprocess.Popen[Any]") -> Path:
    """Return the control group that a benchmark has made, once a process is in it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in Path("/sys/fs/cgroup").glob(f"**/kandiga-bench-{process.pid}-*"):
            if (path / "cgroup.procs").read_text():
                return path
        time.sleep(0.05)
    raise AssertionError("no control group appeared")


class TestMistakes:
    """One line, and an exit code that says what kind of mistake."""

    @pytest.mark.parametrize(
        ("arguments", "code", "line"),
        [
            (["--prefill", "12,x"], ExitCode.USAGE, "'x': wanted a number from 1 on"),
            (["--memory-cap", "2"], ExitCode.USAGE, "wanted a number and a unit"),
            (["--plot", "curve.png"], ExitCode.USAGE, "give --memory-cap 2GB,4GB,8GB"),
            (["--memory-cap", "2GB", "--memory", "1GB"], ExitCode.USAGE, "give one of them"),
            (["--json", "nowhere/figures.json"], ExitCode.FAILED, "there is no folder nowhere"),
        ],
    )
    def test_options(self, model: Path, arguments: list[str], code: ExitCode, line: str) -> None:
        done = start(model, *arguments)
        assert done.returncode == code
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_no_model(self, tmp_path: Path) -> None:
        done = start(tmp_path / "none")
        assert done.returncode == ExitCode.UNREADABLE
        assert len(done.stderr.splitlines()) == 1

    def test_an_engine_that_cannot_is_told_after_what_was_measured(self, model: Path) -> None:
        done = start(model, "--quick", "--no-ceilings", "--experts", "1000")
        assert done.returncode == ExitCode.FAILED
        assert "1000" in done.stderr.splitlines()[-1]
        assert "failed: " in done.stdout

    def test_without_matplotlib(self, model: Path) -> None:
        code = (
            "import sys; sys.modules['matplotlib'] = None\n"
            "from kandiga_run.cli import main\n"
            "sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "bench", model, "--memory-cap", "1GB", "--plot", "a.png"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert done.returncode == ExitCode.FAILED
        assert done.stderr.splitlines() == [
            "kandiga-run: --plot needs matplotlib, which is not installed: "
            "pip install 'kandiga-kexp[plot]'"
        ]


def test_the_measuring_process_stays_light(model: Path) -> None:
    """What it imports is charged to the cap, and to the time of the first token."""
    code = (
        "import io, sys\n"
        "from kandiga_run.bench.measuring import measure\n"
        "from kandiga_run.bench.request import Request\n"
        f"measure(Request({str(model)!r}, {{'engine': 'native'}}, 'cold', depths=(0,), "
        "decode_tokens=2), io.StringIO())\n"
        "heavy = {'mlx', 'transformers', 'torch', 'matplotlib', 'tokenizers', 'rich'}\n"
        "print(*(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


class TestEngines:
    """Whatever computes, what can be said about it is said."""

    def test_mlx_has_no_ceiling_and_prefills_its_depths(self, model: Path) -> None:
        arguments = ("--engine", "mlx", "--prefill", "8", "--depth", "6", "--no-ceilings")
        done = start(model, *arguments, "--quick", "--json", "-")
        assert done.returncode == ExitCode.OK, done.stderr
        prefill, decode = json.loads(done.stdout)["measurements"][0]["figures"]
        assert decode["samples"][0]["filling"] == "prefilled"
        assert prefill["ceiling"] is None

    @needs_group
    def test_mapped_experts_under_a_cap_get_no_budget(self, model: Path) -> None:
        done = start(
            *(model, "--quick", "--residency", "mapped", "--memory-cap", CAP),
            *("--no-ceilings", "--json", "-"),
        )
        assert done.returncode == ExitCode.OK, done.stderr
        measurement = json.loads(done.stdout)["measurements"][0]
        assert measurement["engine"]["residency"] == "mapped"
        assert measurement["memory_cap_enforced"]
