"""`kandiga-run plan`: verdicts, bands, and the ceilings they come from."""

import json
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from kandiga_command import kandiga_run
from kandiga_run.errors import RunError
from kandiga_run.forecast import ceilings
from kandiga_run.forecast.ceilings import MeasuredCeilings, cache_file, ceilings_for
from kandiga_run.forecast.forecast import Forecast, forecast
from kandiga_run.forecast.presets import PRESETS
from kandiga_run.forecast.shape import Download
from kandiga_run.forecast.speed import decode_forecast
from packed import Packed

SHAPE = PRESETS["qwen3.5-35b-a3b"].shape
MACHINE = MeasuredCeilings(38e9, 3e9, "/", "2026-01-01")
GB = 10**9


def plan(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return kandiga_run("plan", *arguments)


def foretold(memory_bytes: int, folder: Path, **changes: object) -> Forecast:
    shape = replace(SHAPE, download=Download(1, 1), layers=SHAPE.layers, **changes)
    return forecast(
        shape,
        folder=folder,
        memory_bytes=memory_bytes,
        total_memory_bytes=64 * GB,
        context_tokens=4096,
        kv="auto",
        ceilings=MACHINE,
    )


def test_measured_figures_lie_in_their_bands() -> None:
    """cython_kernels/BENCHMARKS.md: 14.6 tokens/s with everything in memory, 2.4 in 2 GB (547 MB
    read a token), 3.4 in 8 GB (356 MB), all experts used alike."""
    state_bytes = SHAPE.sequence.recurrent_bytes
    fixed = SHAPE.dense.every_token + (150 << 20)
    for budget, speed, read in ((None, 14.6, 0), (2 * GB, 2.4, 547e6), (8 * GB, 3.4, 356e6)):
        room = SHAPE.expert_bytes if budget is None else budget - fixed
        told = decode_forecast(SHAPE, MACHINE, expert_bytes_in_memory=room, state_bytes=state_bytes)
        assert told.tokens_per_second.low <= speed <= told.tokens_per_second.high
        assert told.disk_bytes.low * 0.97 <= read <= told.disk_bytes.high * 1.03


def test_more_memory_is_never_slower() -> None:
    speeds = [
        decode_forecast(
            SHAPE, MACHINE, expert_bytes_in_memory=room * GB / 4, state_bytes=10**8
        ).tokens_per_second
        for room in range(100)
    ]
    assert all(0 < speed.low <= speed.high for speed in speeds)
    for less, more in pairwise(speeds):
        assert less.low <= more.low
        assert less.high <= more.high


def test_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 100 * GB
    monkeypatch.setattr(
        "kandiga_run.forecast.forecast.shutil.disk_usage",
        lambda _folder: type("Usage", (), {"free": free})(),
    )
    assert foretold(8 * GB, tmp_path).verdict == "fits"
    little = foretold(10**9, tmp_path)
    assert little.verdict == "no"
    assert "of memory at least, and may take 1 GB" in little.reasons[0]
    assert little.chosen is None
    tight = foretold(int(little.memory.smallest * 1.05), tmp_path)
    assert (tight.verdict, "hardly any memory" in tight.reasons[0]) == ("tight", True)
    stranger = foretold(8 * GB, tmp_path, architecture="llama")
    assert (stranger.verdict, stranger.engine) == ("no", None)
    free = 19 * GB
    small = foretold(8 * GB, tmp_path)
    assert small.verdict == "no"
    assert "of disk, of which 19 GB are free" in small.reasons[0]
    free = int(19.6 * GB)
    assert "of the disk free" in foretold(8 * GB, tmp_path).reasons[0]
    # The smallest budget that is named has a speed.
    assert foretold(little.memory.smallest, tmp_path).chosen is not None


def test_ceilings_are_measured_once(
    tiny: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "_PROBE_BYTES", 32 << 20)
    first = ceilings_for(tmp_path / "not" / "there" / "yet")
    assert first.folder == str(tmp_path)
    assert first.memory > 1e9
    assert first.disk > 1e6
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(ceilings, "_measure", lambda *_: pytest.fail("measured again"))
    assert ceilings_for(tmp_path) == first
    again = replace(first, memory=5.0)
    monkeypatch.setattr(ceilings, "_measure", lambda *_: again)
    assert ceilings_for(tmp_path, measure=True) == ceilings_for(tmp_path) == again
    # Another machine with the same home measures for itself, and so does one after an update.
    monkeypatch.setattr(ceilings, "_machine", lambda: "another")
    monkeypatch.setattr(ceilings, "_measure", lambda *_: first)
    assert ceilings_for(tmp_path) == first
    cache_file().write_text(
        json.dumps({key: {"x": 1} for key in json.loads(cache_file().read_text())})
    )
    assert ceilings_for(tmp_path) == first
    cache_file().write_text("{")
    with pytest.raises(RunError, match=r"ceilings\.json: not JSON"):
        ceilings_for(tmp_path)


def test_the_command(tiny: Packed) -> None:
    arguments = (str(tiny.container), "--memory", "2GB", "--context", "4096")
    told = json.loads(plan(*arguments, "--json").stdout)
    assert told["verdict"] == "fits"
    assert told["engine"] == "native"
    assert told["memory"]["budget_bytes"] == 2 * GB
    speed = told["decode"]["tokens_per_second"]
    assert 0 < speed["low"] < speed["high"]
    assert told["decode_by_memory"][-1]["memory_bytes"] is None
    shown = plan(*arguments)
    assert shown.returncode == 0
    assert "forecast, not a measurement" in shown.stdout
    assert "fits" in shown.stdout
    assert shown.stderr == ""
    sizes = json.loads(plan(*arguments, "--json", "--no-speed").stdout)
    assert sizes["decode"] is sizes["ceilings"] is None
    assert sizes["memory"] == told["memory"]


def test_all_presets_in_a_line_each() -> None:
    shown = plan("--no-speed", "--memory", "4GB")
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert [words[0] for words in lines if words and words[0] in PRESETS] == list(PRESETS)
    told = json.loads(plan("--no-speed", "--json").stdout)
    assert [each["model"]["name"] for each in told["models"]] == list(PRESETS)
    # A 35B model in 2 GB, 122B in 4 GB, 397B in 8 GB.
    for each, budget in zip(told["models"], (2, 4, 8), strict=True):
        assert each["memory"]["smallest_bytes"] < budget * GB
