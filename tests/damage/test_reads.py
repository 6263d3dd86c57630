"""Reads that go wrong while a model runs: short, interrupted, refused, failing, not permitted.

The faults are real as far as the program can tell: a preloaded library stands between it and the
system (faulty_reads.c).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from formats import open_set
from packed import PackedModels
from wrong_bit import flip_bit

SOURCE = Path(__file__).with_name("faulty_reads.c")
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="needs LD_PRELOAD and a C compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("preload") / "faulty_reads.so"
    flags = ["-shared", "-fPIC", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([str(COMPILER), *flags, SOURCE, "-o", target], check=True)
    return target


@pytest.fixture
def folder(packed: PackedModels, tmp_path: Path) -> Path:
    return shutil.copytree(packed("mixtral").container, tmp_path / "model")


VERIFY = ["-c", "import sys; from kandiga_pack.cli import main; sys.exit(main())", "verify"]


class Preloaded:
    """Runs commands with a fault."""

    def __init__(self, library: Path) -> None:
        self._library = library

    def run(
        self, command: list[str], fault: str, *, file: str = ".kexp", offset_bytes: int = 0
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "FAULT": fault,
            "FAULT_FILE": file,
            "FAULT_OFFSET": str(offset_bytes),
            # The kernel's own queue takes no call that could be stood between.
            "KANDIGA_READER": "threads",
        }
        return subprocess.run(
            [sys.executable, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def preloaded(library: Path) -> Preloaded:
    return Preloaded(library)


# Prints what the store handed out and the logits, so that a fault that changes a byte shows.
ANSWER = """
import hashlib, sys
import numpy as np
from kandiga_run.engine import load_engine

folder, engine_name, residency, budget = sys.argv[1:]
engine = load_engine(
    folder, engine=engine_name, residency=residency, check="always",
    memory_bytes=int(budget) or None, num_experts_per_token=8,
)
logits = engine.forward(np.array([5, 9, 2], np.int32), engine.new_state(8), logits="all")
engine.close()
print(hashlib.sha256(logits.tobytes()).hexdigest())
"""


def drop_pages(folder: Path) -> None:
    """Take the container out of the page cache, so that what is needed is read, not found."""
    for path in folder.glob("*.kexp"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)  # only clean pages can be dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def answer(
    preloaded: Preloaded, folder: Path, fault: str, engine: str, residency: str
) -> subprocess.CompletedProcess[str]:
    budget = "1000000000" if residency == "owned" else "0"
    drop_pages(folder)
    return preloaded.run(["-c", ANSWER, str(folder), engine, residency, budget], fault)


@pytest.mark.parametrize(
    ("engine", "residency"),
    [
        ("native", "mapped"),
        ("native", "owned"),
        ("mlx", "owned"),
    ],
)
def test_faults_that_leave_every_byte_readable(
    preloaded: Preloaded, folder: Path, engine: str, residency: str
) -> None:
    """Short reads go on, interrupted ones start again, O_DIRECT falls back to buffered reads."""
    plain = answer(preloaded, folder, "none", engine, residency)
    assert plain.returncode == 0, plain.stderr
    # The mlx engine reads with the same code; importing mlx takes longer than all the rest.
    for fault in ("short", "eintr", "direct", "open") if engine == "native" else ("short",):
        done = answer(preloaded, folder, fault, engine, residency)
        assert (done.returncode, done.stdout) == (0, plain.stdout), f"{fault}: {done.stderr}"


@pytest.mark.parametrize("fault", ["short", "eintr", "direct", "open"])
def test_the_faults_are_injected(preloaded: Preloaded, folder: Path, fault: str) -> None:
    """Without this, a library that no call goes through would pass every other test."""
    code = """
import errno, os, sys
path = next(name for name in os.listdir(sys.argv[1]) if name.endswith(".kexp"))
path = os.path.join(sys.argv[1], path)
import mmap
buffer = memoryview(mmap.mmap(-1, 16384))
try:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    print(os.preadv(fd, [buffer], 0))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    done = preloaded.run(["-c", code, str(folder)], fault)
    # An interrupted call is begun again by Python itself (PEP 475).
    expected = {"short": "5000", "eintr": "16384", "direct": "EINVAL", "open": "EINVAL"}[fault]
    assert done.stdout.strip() == expected, done.stderr


def command(folder: Path, *options: str) -> list[str]:
    return [
        "-m",
        "kandiga_run.cli",
        "run",
        str(folder),
        "--raw",
        "Hello",
        "--experts",
        "8",
        "--max-tokens",
        "2",
        "--engine",
        "native",
        *options,
    ]


@pytest.mark.parametrize("residency", ["mapped", "owned"])
def test_a_block_the_disk_cannot_read(preloaded: Preloaded, folder: Path, residency: str) -> None:
    with open_set(folder) as opened:
        extent = opened.extent(1, 3)
        shard = opened.shards[extent.shard]
        name = shard.path.name
    drop_pages(folder)
    done = preloaded.run(
        command(folder, "--residency", residency, "--quiet"),
        "eio",
        offset_bytes=extent.offset_bytes + 100,
    )
    assert done.stdout == ""
    assert done.stderr == (
        f"kandiga-run: {name}: layer 1 expert 3 at {extent.offset_bytes:#x}: cannot be read: "
        f"Input/output error; kandiga-pack verify {folder} tells what is left (E_IO)\n"
    )
    assert done.returncode == 3


@pytest.mark.parametrize("engine", ["native", "mlx"])
def test_dense_weights_the_disk_cannot_read(
    preloaded: Preloaded, folder: Path, engine: str
) -> None:
    with open_set(folder) as opened:
        tensor = opened.dense["model.norm.weight"]
    drop_pages(folder)
    done = preloaded.run(
        command(folder, "--engine", engine, "--quiet"), "eio", offset_bytes=tensor.offset_bytes
    )
    assert done.stdout == ""
    assert "model.kexp" in done.stderr
    assert "Input/output error" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 3


@pytest.mark.parametrize("file", ["model.kexp", "kexp.json", "config.json", "tokenizer.json"])
def test_a_file_that_may_not_be_opened(preloaded: Preloaded, folder: Path, file: str) -> None:
    done = preloaded.run(command(folder), "access", file=file)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kandiga-run: ")
    assert file in done.stderr
    assert "ermission denied" in done.stderr
    assert done.returncode == 3


@pytest.mark.parametrize("fault", ["short", "eintr", "direct", "open"])
def test_verification_reads_on(preloaded: Preloaded, folder: Path, fault: str) -> None:
    done = preloaded.run([*VERIFY, str(folder)], fault)
    assert done.returncode == 0, done.stderr
    assert "experts" in done.stdout


def test_verification_names_what_the_disk_cannot_read_and_goes_on(
    preloaded: Preloaded, folder: Path
) -> None:
    with open_set(folder) as opened:
        unreadable, damaged = opened.extent(0, 2), opened.extent(1, 5)
        path = opened.shards[damaged.shard].path
    flip_bit(path, damaged.offset_bytes)
    done = preloaded.run(
        [*VERIFY, str(folder)],
        "eio",
        offset_bytes=unreadable.offset_bytes + 5,
    )
    output = done.stdout + done.stderr
    assert "layer 0 expert 2" in output
    assert "Input/output error" in output
    assert "layer 1 expert 5" in output
    assert done.returncode in (1, 3)
