"""Two conversions into one destination: the second one says who is at work."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kandiga_pack.cli import run
from kandiga_pack.errors import PackError
from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.workspace import Workspace
from split_checkpoint import make_split_checkpoint

HOLD = """
import sys, time
from pathlib import Path
from kandiga_pack.workspace import Workspace
with Workspace(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_split_checkpoint(tmp_path / "source", num_layers=2)


@contextmanager
def held_by_another(dest: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process at work on `dest`, until the block ends or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(dest)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        if not process.stdin.closed:
            process.stdin.close()
        process.wait(30)


def test_a_second_converter_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "packed"
    with held_by_another(dest) as other:
        assert run(["convert", str(source), str(dest)]) == ExitCode.FAILED
        error = capsys.readouterr().err
        assert f"{dest}: another kandiga-pack (process {other.pid}) is writing it" in error
        assert error.count("\n") == 1
        restart = ["convert", str(source), str(dest), "--restart"]
        assert run(restart) == ExitCode.FAILED
        assert (tmp_path / "packed.partial" / "lock").exists()
    assert not (tmp_path / "packed.partial").exists()
    assert run(["convert", str(source), str(dest)]) == ExitCode.OK


def test_the_lock_of_a_dead_process_is_no_obstacle(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "packed"
    with held_by_another(dest) as other:
        other.send_signal(signal.SIGKILL)
        other.wait(30)
        assert (tmp_path / "packed.partial" / "lock").read_text() == str(other.pid)
        assert run(["convert", str(source), str(dest)]) == ExitCode.OK
    assert not (tmp_path / "packed.partial").exists()


def test_whoever_waited_for_a_lock_that_went_away(tmp_path: Path) -> None:
    """The file locked is not the one in the folder any more: it is opened again."""
    workspace = Workspace(tmp_path / "packed")
    workspace.folder.mkdir()
    stale = os.open(workspace.folder / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(stale, fcntl.LOCK_EX)
    (workspace.folder / "lock").unlink()
    with workspace, pytest.raises(PackError, match=f"process {os.getpid()}"):
        Workspace(tmp_path / "packed").__enter__()
    os.close(stale)
    assert not workspace.folder.exists()


def test_two_at_once(source: Path, tmp_path: Path) -> None:
    """Started together, one makes the set and the others are told, whenever they come."""
    dest = tmp_path / "packed"
    command = [sys.executable, "-m", "kandiga_pack", "convert", str(source), str(dest)]
    started = []
    for _ in range(3):
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        time.sleep(0.05)
    codes, errors = [], []
    for process in started:
        errors.append(process.communicate(timeout=60)[1])
        codes.append(process.returncode)
    assert sorted(codes) == [ExitCode.OK, ExitCode.FAILED, ExitCode.FAILED], errors
    for code, error in zip(codes, errors, strict=True):
        if code:
            assert "is writing it" in error or "already exists" in error
    assert not (tmp_path / "packed.partial").exists()
    assert run(["verify", str(dest), "--against", str(source)]) == ExitCode.OK
