"""Disks that fill up or fail: one line, nothing that looks finished, and the next run goes on."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats import KexpError, open_set
from kandiga_pack import convert
from kandiga_pack.exit_codes import ExitCode
from split_checkpoint import make_split_checkpoint, weight_files

SHARD_SIZE = 0.0006  # GiB: a layer each
OPTIONS = ("--shard-size", str(SHARD_SIZE), "--quiet")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and tmpfs")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 layers of 393 kB in files of two layers and less."""
    return make_split_checkpoint(tmp_path_factory.mktemp("faults") / "source")


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, str]:
    return digests(convert(source, source.parent / "whole", shard_bytes=644245).path)


@pytest.fixture(scope="module")
def failing_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "failing_disk.so"
    code = Path(__file__).with_name("failing_disk.c")
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, "-o", str(library), str(code), "-ldl"], check=True)
    return library


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def pack(source: Path, dest: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "kandiga_pack", "convert", str(source), str(dest), *OPTIONS],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def assert_nothing_looks_finished(dest: Path) -> None:
    assert not dest.exists()
    folder = dest.with_name(f"{dest.name}.partial") / "set"
    if folder.exists():
        for path in (folder, *folder.glob("*.kexp")):
            with pytest.raises(KexpError):
                open_set(path)


def assert_one_line(stderr: str, *texts: str) -> None:
    assert stderr.startswith("kandiga-pack: ")
    assert stderr.count("\n") == 1, stderr
    for text in texts:
        assert text in stderr


# Where in the run each call is made: the first blocks, the middle, the last, the index, the commit.
@pytest.mark.parametrize(
    ("call", "at", "path"),
    [
        ("pwrite", 0, ".kexp"),
        ("pwrite", 9, "model-00004"),
        ("pwrite", 12, "model-00001"),
        ("pwrite", 3, "/journal"),
        ("fsync", 0, "model-00002"),
        ("fsync", 0, "model-00005"),
        ("fsync", 1, "model-00003"),
        ("fsync", 0, "kexp.json"),
        ("fsync", 2, "/journal"),
        ("preadv", 15, "model-00002-of-00004.safetensors"),
    ],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_call_that_fails(
    call: str,
    at: int,
    path: str,
    number: int,
    source: Path,
    whole: dict[str, str],
    failing_disk: Path,
    tmp_path: Path,
) -> None:
    dest = tmp_path / "packed"
    done = pack(
        source,
        dest,
        LD_PRELOAD=str(failing_disk),
        FAIL_SHORT="1",
        FAIL_CALL=call,
        FAIL_AT=str(at),
        FAIL_PATH=path,
        FAIL_ERRNO=str(number),
    )
    assert done.returncode in (ExitCode.FAILED, ExitCode.UNREADABLE), done.stderr
    assert_one_line(done.stderr, os.strerror(number))
    if number == errno.ENOSPC:
        assert "free some space and run the command again" in done.stderr
    assert_nothing_looks_finished(dest)
    assert pack(source, dest).returncode == ExitCode.OK
    assert digests(dest) == whole
    assert [each.name for each in tmp_path.iterdir()] == ["packed"]


def test_a_flush_under_way_that_fails(failing_disk: Path, tmp_path: Path) -> None:
    """The error that a background flush met is not lost: the fsync after it would succeed."""
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from formats import flusher
flusher._STEP_BYTES = 100
from formats.errors import KexpError
from formats.flusher import Flusher
from formats.durable import flush_to_disk
fd = os.open({str(tmp_path / "file")!r}, os.O_CREAT | os.O_RDWR)
flusher = Flusher()
flusher.wrote(fd, 1000)
flush_to_disk(fd)
for _ in range(2):
    try:
        flusher.wait()
    except OSError as error:
        print(error.strerror)
flusher.close()
"""
    shim = {"FAIL_CALL": "fdatasync", "FAIL_AT": "0", "FAIL_PATH": "file", "FAIL_ERRNO": "5"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(failing_disk), **shim},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "Input/output error\n" * 2


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("call", ["direct", "none"])
def test_blocks_past_the_page_cache_or_not(
    call: str, short: bool, failing_disk: Path, tmp_path: Path
) -> None:
    """Where O_DIRECT is refused, and where it writes a part only, the bytes are the same."""
    source = make_split_checkpoint(tmp_path / "source", num_layers=2, hidden_size=512)
    environment = {"LD_PRELOAD": str(failing_disk), "FAIL_CALL": call}
    environment |= {"FAIL_SHORT": "1"} if short else {}
    assert pack(source, tmp_path / "shim", **environment).returncode == ExitCode.OK
    assert pack(source, tmp_path / "plain").returncode == ExitCode.OK
    assert digests(tmp_path / "shim") == digests(tmp_path / "plain")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, without O_DIRECT where the kernel's tmpfs has none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(
    source: Path,
    whole: dict[str, str],
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Somebody else takes the room after it was looked for; when it is given back, it goes on."""
    from kandiga_pack.cli import run

    monkeypatch.setattr(sys.modules[convert.__module__], "check_free_space", lambda *_: None)
    (disk / "others").write_bytes(bytes(2 << 20))
    command = ["convert", str(source), str(disk / "packed"), *OPTIONS]
    for _ in range(2):  # no better the second time, and nothing is lost
        assert run(command) == ExitCode.FAILED
        assert_one_line(
            capsys.readouterr().err, "No space left on device (E_IO); free some space", "is kept in"
        )
        assert_nothing_looks_finished(disk / "packed")
    (disk / "others").unlink()
    assert run(command) == ExitCode.OK
    assert digests(disk / "packed") == whole
    assert [each.name for each in disk.iterdir()] == ["packed"]


def test_a_source_that_changes_while_it_is_packed(tmp_path: Path) -> None:
    """Written to or replaced: the error names the file, and what was read of it is not kept."""
    for number, change in enumerate(("touch", "replace", "remove", "grow")):
        folder = tmp_path / str(number)
        source = make_split_checkpoint(folder / "source")
        victim = weight_files(source)[1]
        code = f"""
import os, shutil, sys
from pathlib import Path
from kandiga_pack import conversion
from kandiga_pack.cli import run
victim = Path({str(victim)!r})
write_layer = conversion._Run._write_layer
def changed_by_another(self, stack):
    write_layer(self, stack)
    if stack.layer == 3:
        match {change!r}:
            case "touch": os.utime(victim)
            case "replace":
                shutil.copy2(victim, victim.with_suffix(".other"))
                victim.with_suffix(".other").replace(victim)
            case "remove": victim.unlink()
            case "grow":
                with victim.open("ab") as file: file.write(b"x")
conversion._Run._write_layer = changed_by_another
sys.exit(run(["convert", {str(source)!r}, {str(folder / "packed")!r}, *{list(OPTIONS)!r}]))
"""
        done = subprocess.run(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == ExitCode.FAILED
        word = "removed while" if change == "remove" else "changed while"
        assert_one_line(done.stderr, f"{victim}: {word} it was being packed")
        assert_nothing_looks_finished(folder / "packed")
