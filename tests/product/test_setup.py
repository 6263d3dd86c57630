"""`kandiga-run setup`: from an empty home to an answer, against a Hub on this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from demo.prepare import CHECKPOINT_NAME
from hub_stub import HubStub, hub_environment, run_with_hub
from kandiga_run.default_model import default_model
from kandiga_run.errors import RunError
from kandiga_run.forecast.ceilings import MeasuredCeilings, cache_file
from kandiga_run.forecast.forecast import Forecast, forecast
from kandiga_run.forecast.presets import PRESETS
from kandiga_run.setup import install
from kandiga_run.setup.choose import best
from kandiga_run.setup.target import find_target
from kandiga_run.terminal.output import Output
from packed import Packed

ID = "someone/tiny-qwen"
SHORT = ("--max-tokens", "4", "--json")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def known_ceilings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the seconds of measuring."""
    from kandiga_run.forecast import ceilings

    measured = MeasuredCeilings(30e9, 2e9, str(home), "2026-01-01")
    monkeypatch.setattr(ceilings, "_measure", lambda *_: measured)
    ceilings.ceilings_for(home)
    assert cache_file().exists()


def run(hub: HubStub, home: Path, *arguments: str, **variables: str) -> Done:
    return run_with_hub(hub, home / "hf", "kandiga_run", *arguments, **variables)


def test_a_checkpoint_is_packed_and_remembered(hub: HubStub, tiny: Packed, home: Path) -> None:
    hub.add(ID, tiny.checkpoint)
    done = run(hub, home, "setup", "--model", ID, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    dest = home / "data/kandiga/models/someone--tiny-qwen"
    assert json.loads(done.stdout) == {
        "model": ID,
        "source": ID,
        "default_model": str(dest),
        "how": "pack",
    }
    assert done.stderr.rstrip().endswith("kandiga-run chat")
    assert default_model() == str(dest)
    # Nothing of the checkpoint is left, and nothing unfinished.
    assert [each.name for each in dest.parent.iterdir()] == [dest.name]
    assert not [each for each in home.rglob("*.safetensors") if each.stat().st_size > 1000]
    answer = run(hub, home, "What is the capital of France?", *SHORT)
    local = run(hub, home, "run", str(tiny.container), "What is the capital of France?", *SHORT)
    assert json.loads(answer.stdout)["token_ids"] == json.loads(local.stdout)["token_ids"]
    # Once more there is nothing to do, and nobody is asked about anything.
    requests = len(hub.requests)
    again = run(hub, home, "setup", "--model", ID, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert "is ready" in again.stderr
    assert len(hub.requests) == requests


def test_a_published_container_is_fetched(hub: HubStub, tiny: Packed, home: Path) -> None:
    hub.add(ID, tiny.container)
    done = run(hub, home, "setup", "--model", ID, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert default_model() == ID
    assert run(hub, home, "Who are you?", *SHORT, HF_HUB_OFFLINE="1").returncode == 0


def test_a_container_here_is_checked_before_it_is_remembered(
    hub: HubStub, tiny: Packed, home: Path, tmp_path: Path
) -> None:
    assert run(hub, home, "setup", "--model", str(tiny.container)).returncode == 0
    assert default_model() == str(tiny.container)
    copy = tmp_path / "copy"
    copy.mkdir()
    for each in tiny.container.iterdir():
        (copy / each.name).write_bytes(each.read_bytes())
    shard = max(copy.glob("*.kexp"), key=lambda each: each.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[-20_000] ^= 1
    shard.write_bytes(data)
    done = run(hub, home, "setup", "--model", str(copy))
    assert done.returncode == 1
    assert shard.name in done.stderr
    assert default_model() == str(tiny.container)


def test_nothing_happens_unasked(hub: HubStub, tiny: Packed, home: Path) -> None:
    hub.add(ID, tiny.checkpoint)
    done = run(hub, home, "setup", "--model", ID)
    assert done.returncode == 2
    assert "give --yes" in done.stderr
    command = [sys.executable, "-m", "kandiga_run", "setup", "--model", ID]
    for answer, code in (("n\r", 0), ("\x03", 130)):
        child = pexpect.spawn(
            command[0], command[1:], env=hub_environment(hub, home / "hf"), timeout=60
        )
        child.expect(r"Download and pack someone/tiny-qwen \(.*\) into .*\?")
        child.send(answer)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == code
    assert default_model() is None
    assert not (home / "data").exists()
    assert hub.sent_bytes(".safetensors") < 3 * ((1 << 20) + 100_000)


def test_what_cannot_work_is_refused_before_the_download(
    hub: HubStub, tiny: Packed, home: Path
) -> None:
    hub.add(ID, tiny.checkpoint)
    done = run(hub, home, "setup", "--model", ID, "--yes", "--memory", "10MB")
    assert done.returncode == 1
    assert f"{ID}: it needs" in done.stderr
    assert "of memory at least, and may take 10 MB" in done.stderr
    assert not (home / "data").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_an_interrupted_setup_goes_on(
    hub: HubStub, tiny: Packed, home: Path, stop: signal.Signals
) -> None:
    hub.add(ID, tiny.checkpoint)
    models = home / "data/kandiga/models"
    partial = models / "someone--tiny-qwen.partial"
    hub.latency_seconds = 0.3
    process = subprocess.Popen(
        [sys.executable, "-m", "kandiga_run", "setup", "--model", ID, "--yes"],
        env=hub_environment(hub, home / "hf"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal sends it: to the packer, too
    else:
        process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert default_model() is None
    hub.latency_seconds = 0.0
    done = run(hub, home, "setup", "--model", ID, "--yes")
    assert done.returncode == 0, done.stderr
    assert default_model() == str(models / "someone--tiny-qwen")
    assert not partial.exists()


def test_a_preset_is_found_on_the_hub(hub: HubStub, tiny: Packed, home: Path) -> None:
    preset = PRESETS["qwen3.5-35b-a3b"]
    hub.add(preset.checkpoint, tiny.checkpoint)
    done = run(hub, home, "setup", "--model", preset.name, "--yes")
    assert done.returncode == 0, done.stderr
    assert Path(default_model() or "").name == "mlx-community--Qwen3.5-35B-A3B-4bit"
    assert f"{preset.name} is ready" in done.stderr


def test_a_commit_and_a_folder(hub: HubStub, tiny: Packed, home: Path) -> None:
    commit = hub.add(ID, tiny.checkpoint)
    hub.repositories[ID].commit({"README.md": b"nothing is left of it"})
    done = run(hub, home, "setup", "--model", f"{ID}@{commit}", "--yes")
    assert done.returncode == 0, done.stderr
    models = home / "data/kandiga/models"
    assert default_model() == str(models / f"someone--tiny-qwen@{commit}")
    done = run(hub, home, "setup", "--model", str(tiny.checkpoint), "--yes", "--quiet")
    assert done.returncode == 0
    assert done.stdout == done.stderr == ""
    assert default_model() == str(models / tiny.checkpoint.name)
    assert (tiny.checkpoint / "model.safetensors").stat().st_size > 100_000


def test_the_demo_needs_the_source_tree(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "__file__", str(tmp_path / "kandiga_run/setup/install.py"))
    monkeypatch.setattr(install, "source_folder", lambda: None)
    with pytest.raises(RunError, match="clone the repository and run `make demo`"):
        install.prepare_demo(home, Output(is_quiet=True))


def test_the_demo_of_a_package_that_was_installed_from_a_clone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install .` leaves the package elsewhere, and a record of the clone."""
    asked: list[object] = []
    (tmp_path / "clone" / "demo").mkdir(parents=True)
    (tmp_path / "clone" / "demo" / "prepare.py").write_text("")
    monkeypatch.setattr(install, "__file__", str(tmp_path / "kandiga_run/setup/install.py"))
    monkeypatch.setattr(install, "source_folder", lambda: tmp_path / "clone")
    monkeypatch.setattr(install, "run_step", lambda command, **options: asked.append(options))
    made = install.prepare_demo(home, Output(is_quiet=True))
    assert made == home / "demo" / CHECKPOINT_NAME
    assert [options["folder"] for options in asked] == [tmp_path / "clone"]


def test_the_disk_holds_the_demo_once(home: Path, tiny: Packed) -> None:
    """What it was made of goes once it is packed, and it is not made again then."""
    checkpoint, packed = home / "demo" / CHECKPOINT_NAME, home / CHECKPOINT_NAME
    shutil.copytree(tiny.checkpoint, checkpoint)
    target = find_target(str(checkpoint), home)
    install.forget_demo(home, target)
    assert checkpoint.is_dir()
    shutil.copytree(tiny.container, packed)
    install.forget_demo(home, target)
    assert not checkpoint.parent.exists()
    assert install.prepare_demo(home, Output(is_quiet=True)) == packed
    install.forget_demo(home, find_target(str(packed), home))
    assert (packed / "kexp.json").is_file()


def forecasts(
    memory_bytes: int, free_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> list[Forecast]:
    monkeypatch.setattr(
        "kandiga_run.forecast.forecast.shutil.disk_usage",
        lambda _folder: type("Usage", (), {"free": free_bytes})(),
    )
    ceilings = MeasuredCeilings(200e9, 6e9, "/", "2026-01-01")
    return [
        forecast(
            each.shape,
            folder=Path("/"),
            memory_bytes=memory_bytes,
            total_memory_bytes=memory_bytes,
            context_tokens=8192,
            kv="auto",
            ceilings=ceilings,
        )
        for each in PRESETS.values()
    ]


@pytest.mark.parametrize(
    ("memory_gb", "free_gb", "wanted"),
    [
        (3, 1000, "qwen3.5-35b-a3b"),
        (100, 1000, "qwen3.5-122b-a10b"),
        (300, 1000, "qwen3.5-397b-a17b"),
        (300, 100, "qwen3.5-122b-a10b"),
        (300, 30, "qwen3.5-35b-a3b"),
    ],
)
def test_the_largest_that_fits(
    memory_gb: int, free_gb: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = forecasts(memory_gb * 10**9, free_gb * 10**9, monkeypatch)
    chosen = best(told)
    assert chosen.shape.name == wanted, [(each.verdict, each.reasons) for each in told]


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"none of the known models works here .*--model demo"):
        best(forecasts(10**9, 10**10, monkeypatch))
