"""No room, no permission: one line, before writing where it can be known, nothing left."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from kandiga_pack import convert, export
from kandiga_pack import convert as convert_function
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode

CONVERT_MODULE = sys.modules[convert_function.__module__]
EXPORT_MODULE = sys.modules[export.__module__]
NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """2.4 MB."""
    sizes = {"hidden_size": 256, "intermediate_size": 256}
    return make_checkpoint(tmp_path / "source", "mixtral", overrides=sizes, dtype="float16")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    yield from _mounted(tmp_path / "small", "size=1m")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from _mounted(tmp_path / "read-only", "ro")


def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs Linux and root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def assert_one_line(stderr: str, text: str) -> None:
    assert text in stderr
    assert stderr.startswith("kandiga-pack: ")
    assert stderr.count("\n") == 1, stderr


def test_room_for_what_is_made_up(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = str(small_disk / "packed")
    assert run(["synth", "qwen3.5-397b-a17b", packed]) == ExitCode.FAILED
    assert_one_line(capsys.readouterr().err, "223.03 GB, but only 1.04 MB are free there")
    assert list(small_disk.iterdir()) == []


def test_room_is_looked_for_first(
    source: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(source), str(small_disk / "packed")]) == ExitCode.FAILED
    # of 1.05 MB; the lock and the journal take a page each
    assert_one_line(capsys.readouterr().err, "MB, but only 1.04 MB are free there")
    assert list(small_disk.iterdir()) == []


def test_disk_full_while_packing(
    source: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else takes the room after it was looked for."""
    monkeypatch.setattr(CONVERT_MODULE, "check_free_space", lambda *_: None)
    assert run(["convert", str(source), str(small_disk / "packed")]) == ExitCode.FAILED
    assert_one_line(capsys.readouterr().err, "No space left on device (E_IO); free some space")
    assert list(small_disk.iterdir()) == []


def test_disk_full_while_exporting(
    source: Path,
    small_disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert(source, tmp_path / "packed")
    arguments = ["export", str(tmp_path / "packed"), str(small_disk / "exported")]
    assert run(arguments) == ExitCode.FAILED
    assert_one_line(capsys.readouterr().err, "MB, but only 1.05 MB are free there")
    monkeypatch.setattr(EXPORT_MODULE, "check_free_space", lambda *_: None)
    assert run(arguments) == ExitCode.FAILED
    assert_one_line(capsys.readouterr().err, "No space left on device (E_IO); free some space")
    assert list(small_disk.iterdir()) == []


def test_file_size_limit(source: Path, tmp_path: Path) -> None:
    """A quota, as every platform has it."""
    code = (
        "import resource, sys; from kandiga_pack.cli import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"sys.exit(run(['convert', {str(source)!r}, {str(tmp_path / 'packed')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.FAILED
    assert_one_line(done.stderr, "File too large (E_IO); free some space")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_destination_on_a_read_only_disk(
    source: Path, read_only_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(source), str(read_only_disk / "packed")]) == ExitCode.UNREADABLE
    assert_one_line(capsys.readouterr().err, "may not be written to")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may reach; pytest's own are for their owner."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("locked", ["config.json", "model.safetensors", "tokenizer.json", "."])
def test_no_permission_to_read(locked: str, public_folder: Path) -> None:
    source = make_checkpoint(public_folder / "source", "mixtral")
    (source / locked).chmod(0)
    done = _run_as_nobody(["convert", str(source), str(public_folder / "packed")])
    (source / locked).chmod(0o755)
    assert done.returncode == ExitCode.UNREADABLE, done.stderr
    assert_one_line(done.stderr, "ermission denied")
    assert ("source" if locked == "." else locked) in done.stderr
    assert [path.name for path in public_folder.iterdir()] == ["source"]


def test_no_permission_to_write(public_folder: Path) -> None:
    source = make_checkpoint(public_folder / "source", "mixtral")
    public_folder.chmod(0o555)
    done = _run_as_nobody(["convert", str(source), str(public_folder / "packed")])
    public_folder.chmod(0o755)
    assert done.returncode == ExitCode.UNREADABLE
    assert_one_line(done.stderr, "may not be written to (permission denied)")


def _run_as_nobody(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run without the rights of root, whom no mode stops."""
    code = (
        "import os, sys; from kandiga_pack.cli import run\n"
        f"os.geteuid() == 0 and os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        f"sys.exit(run({arguments!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
