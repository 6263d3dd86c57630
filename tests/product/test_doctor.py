"""`kandiga-run doctor`: what it says of this machine, and what it calls broken."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cython_kernels import available_isas
from hub_stub import HubStub, hub_environment
from kandiga_command import kandiga_run
from kandiga_run.default_model import config_file, remember_default_model
from kandiga_run.doctor.finding import Finding, findings
from kandiga_run.doctor.storage import filesystem_of, reads_past_cache
from packed import Packed


def doctor(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return kandiga_run("doctor", "--no-speed", *arguments, **variables)


def diagnosis(*arguments: str, code: int = 0, **variables: str) -> dict[str, dict[str, Any]]:
    done = doctor("--json", *arguments, **variables)
    assert done.returncode == code, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] == (code == 0)
    return {each["name"]: each for each in told["findings"]}


def test_this_machine() -> None:
    told = diagnosis()
    assert told["kernels"]["facts"]["available"] == list(available_isas())
    assert told["pages"]["facts"]["page_bytes"] == os.sysconf("SC_PAGE_SIZE")
    assert told["processor"]["facts"]["processors"] == len(os.sched_getaffinity(0))
    memory = told["memory"]["facts"]
    assert 0 < memory["available_bytes"] <= memory["total_bytes"]
    assert told["default model"]["advice"] == "`kandiga-run setup` chooses one"
    assert told["models folder"]["facts"]["free_bytes"] > 0
    text = doctor()
    assert text.returncode == 0
    for name in told:
        assert name in text.stdout


def test_how_the_default_model_would_be_run(tiny: Packed) -> None:
    remember_default_model(str(tiny.container))
    told = diagnosis()
    assert str(tiny.container) in told["model"]["text"]
    assert told["model"]["facts"]["engine"] == "native"
    assert told["used for it"]["facts"]["residency"] == "mapped"
    named = diagnosis(str(tiny.container), KANDIGA_MODEL="/nowhere")
    assert "named here" in named["model"]["text"]


@pytest.mark.parametrize("fault", ["missing model", "damaged model", "damaged config", "isa"])
def test_what_is_broken_ends_with_1(tiny: Packed, tmp_path: Path, fault: str) -> None:
    variables = {}
    if fault == "missing model":
        remember_default_model(str(tmp_path / "gone"))
    elif fault == "damaged model":
        copy = tmp_path / "copy"
        copy.mkdir()
        for each in tiny.container.iterdir():
            (copy / each.name).write_bytes(each.read_bytes()[:1000])
        remember_default_model(str(copy))
    elif fault == "damaged config":
        config_file().parent.mkdir(parents=True)
        config_file().write_text("{")
    else:
        variables["KANDIGA_ISA"] = "neon" if "neon" not in available_isas() else "avx2"
    told = diagnosis(code=1, **variables)
    broken = [each for each in told.values() if each["state"] == "broken"]
    assert len(broken) >= 1
    # The rest was looked at nevertheless.
    assert told["engines"]["state"] == "ok"
    quiet = doctor("--quiet", **variables)
    assert quiet.returncode == 1
    assert broken[0]["name"] in quiet.stdout
    assert "engines" not in quiet.stdout
    assert "Traceback" not in quiet.stderr


def test_a_forced_slower_kernel_is_a_warning() -> None:
    kernels = diagnosis(KANDIGA_ISA="scalar")["kernels"]
    assert (kernels["state"], kernels["facts"]["chosen"]) == ("warning", "scalar")
    assert kernels["advice"] == "unset KANDIGA_ISA"


def test_an_id_is_not_asked_for(hub: HubStub, home: Path) -> None:
    remember_default_model("someone/model")
    variables = hub_environment(hub, home / "hf")
    told = diagnosis(**variables)
    assert told["model"]["state"] == "warning"
    assert "not downloaded yet" in told["model"]["text"]
    assert hub.requests == []


def test_a_look_that_fails_is_a_finding() -> None:
    def fails() -> Any:
        yield Finding("first", "ok", "fine")
        raise OSError(5, "Input/output error", "/dev/x")

    told = list(findings({"second": fails, "third": lambda: iter([Finding("third", "ok", "")])}))
    assert [(each.name, each.state) for each in told] == [
        ("first", "ok"),
        ("second", "broken"),
        ("third", "ok"),
    ]
    assert told[1].text == "/dev/x: Input/output error"


def test_the_file_system(tmp_path: Path) -> None:
    wanted = subprocess.run(
        ["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    found = filesystem_of(tmp_path)
    assert found is not None
    assert found[:3] == wanted[:3]  # stat says "ext2/ext3" of ext4
    reads_past_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []
    if Path("/dev/shm").is_dir():
        assert filesystem_of(Path("/dev/shm")) == "tmpfs"
