"""A result counts as done only when it is whole and made from the same inputs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.download import sha256
from demo.prepare import CHECKPOINT_NAME, INTERRUPTED, ROOT, prepare
from demo.records import code_digest, forget, is_complete, record, record_of

INPUTS = {"seed": 0, "files": ["a", "b"]}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(bytes(1000))
    (folder / "config").write_text("{}")
    record(folder, INPUTS)
    return folder


def test_whole_and_of_the_same_inputs(result: Path) -> None:
    assert is_complete(result, INPUTS)
    assert not is_complete(result, {**INPUTS, "seed": 1})


def test_without_its_record(result: Path) -> None:
    result.with_name("result.done.json").unlink()
    assert not is_complete(result, INPUTS)
    assert record_of(result) is None


def test_a_record_that_is_cut_short(result: Path) -> None:
    path = result.with_name("result.done.json")
    path.write_text(path.read_text()[:-10])
    assert not is_complete(result, INPUTS)


def test_a_file_that_is_gone_cut_added_or_changed(result: Path) -> None:
    weights = result / "sub" / "weights"
    weights.write_bytes(bytes(999))
    assert not is_complete(result, INPUTS)
    record(result, INPUTS)
    weights.write_bytes(b"x" * 999)
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert not is_complete(result, INPUTS)
    record(result, INPUTS)
    (result / "more").touch()
    assert not is_complete(result, INPUTS)
    record(result, INPUTS)
    weights.unlink()
    assert not is_complete(result, INPUTS)


def test_forgetting(result: Path) -> None:
    forget(result)
    forget(result)
    assert list(result.parent.iterdir()) == []


def test_changed_code_is_another_input(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_digest([tmp_path])
    assert code_digest([tmp_path]) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_digest([tmp_path]) != before


def test_ctrl_c_leaves_nothing_half_made(tmp_path: Path) -> None:
    whole = prepare(ROOT / ".demo")
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    (tmp_path / gguf).hardlink_to(ROOT / ".demo" / gguf)
    command = [sys.executable, "-m", "demo.prepare", "--work", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    partial = tmp_path / f"{CHECKPOINT_NAME}.partial"
    deadline = time.monotonic() + 60
    while not list(partial.glob("model-00001-*")):
        assert process.poll() is None, "ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert [path.name for path in tmp_path.iterdir()] == [gguf]
    again = prepare(tmp_path)
    assert sha256(again / "config.json") == sha256(whole / "config.json")
