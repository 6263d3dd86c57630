"""A result counts as done only when it is whole and made from the same inputs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.download import sha256
from demo.prepare import CHECKPOINT_NAME, INTERRUPTED, ROOT, prepare
from demo.records import code_digest, forget, is_complete, record, record_of

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
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


def test_a_file_in_its_place_is_forgotten_too(result: Path) -> None:
    shutil.rmtree(result)
    result.write_text("not a folder")
    assert not is_complete(result, INPUTS)
    forget(result)
    assert list(result.parent.iterdir()) == []
    forget(result)


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


def interrupt(arguments: list[str], work: Path, sign: str) -> None:
    """Run a demo script, press Ctrl-C as soon as something named `sign` appears in `work`."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--work", str(work)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(work.glob(sign)):
        assert process.poll() is None, "ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to the commands too
    assert process.wait(timeout=60) == INTERRUPTED


@pytest.fixture(scope="module")
def whole() -> Path:
    return prepare(ROOT / ".demo")


def test_ctrl_c_while_preparing(whole: Path, tmp_path: Path) -> None:
    (tmp_path / GGUF_NAME).hardlink_to(whole.with_name(GGUF_NAME))
    interrupt(["demo.prepare"], tmp_path, f"{CHECKPOINT_NAME}.partial/model-00001-*")
    assert [path.name for path in tmp_path.iterdir()] == [GGUF_NAME]
    again = prepare(tmp_path)
    assert sha256(again / "config.json") == sha256(whole / "config.json")
    shutil.rmtree(again)


def test_ctrl_c_while_packing(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / whole.name, copy_function=os.link)
    recorded = whole.with_name(f"{whole.name}.done.json")
    shutil.copy(recorded, tmp_path)
    interrupt(["demo"], tmp_path, "*.partial/set/*.kexp")
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, recorded.name}
