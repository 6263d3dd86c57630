"""The command as a process: what it prints where, what it leaves, and how it stops."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from kandiga_pack.cli import cli, run
from kandiga_pack.exit_codes import ExitCode

COMMAND = [sys.executable, "-m", "kandiga_pack"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "source", "mixtral", dtype="float16")


@pytest.fixture(scope="module")
def large_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 MB: long enough to be stopped half-way."""
    sizes = {"hidden_size": 1024, "intermediate_size": 1024, "num_local_experts": 16}
    folder = tmp_path_factory.mktemp("cli-large") / "source"
    return make_checkpoint(folder, "mixtral", overrides=sizes, dtype="float16", bits=8)


def test_two_commands(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = str(tmp_path / "packed")
    assert run(["convert", str(source), packed, "--json"]) == ExitCode.OK
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_experts"] == 16
    assert summary["num_layers"] == 2
    size = sum(path.stat().st_size for path in (tmp_path / "packed").iterdir())
    assert summary["bytes_written"] == size
    assert summary["bytes_per_second"] == pytest.approx(summary["bytes_read"] / summary["seconds"])
    assert run(["verify", packed, "--against", str(source), "--json"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["tensors_compared"] > 0
    assert report["bytes_checked"] == sum(
        path.stat().st_size for path in (tmp_path / "packed").glob("*.kexp")
    )
    assert run(["inspect", packed, "--json"]) == ExitCode.OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "mixtral"
    assert facts["top_k"] == 2
    assert facts["experts_per_layer"] == [8]
    assert facts["source"]["files"]["model.safetensors"]["size"] > 0
    assert run(["export", packed, str(tmp_path / "exported"), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["identical_files"] == 1


def test_people_get_tables(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = str(tmp_path / "packed")
    for arguments, words in (
        (["convert", str(source), packed], ["mixtral", "16 in 2 layers", "MB/s"]),
        (["verify", packed], ["all right", "every byte"]),
        (["verify", packed, "--level", "index"], ["all right", "index only"]),
        (["inspect", packed], ["gate.weight", "affine 4-bit, group 32", "set root"]),
        (["export", packed, str(tmp_path / "exported")], ["1 of 1"]),
    ):
        assert run(arguments) == ExitCode.OK
        stdout, stderr = capsys.readouterr()
        assert all(word in stdout for word in words), stdout
        assert stderr == ""


def test_quiet_says_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = str(tmp_path / "packed")
    for arguments in (["convert", str(source), packed], ["verify", packed], ["inspect", packed]):
        assert run([*arguments, "--quiet"]) == ExitCode.OK
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_help_has_examples_and_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert f"  kandiga-pack {verb} " in text
    for code in ExitCode:
        assert f"{code.value}  {code.meaning}" in text


@pytest.mark.parametrize("arguments", [["convert"], ["nonsense"], ["verify", "x", "--level", "9"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == ExitCode.USAGE
    stderr = capsys.readouterr().err
    assert stderr.startswith("kandiga-pack: ")
    assert stderr.endswith(" --help)\n")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["verify", "inspect", "export"])
def test_no_such_container(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [verb, str(tmp_path / "nowhere")]
    if verb == "export":
        arguments.append(str(tmp_path / "out"))
    assert run(arguments) == ExitCode.UNREADABLE
    assert "nowhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_progress_on_a_terminal_only(large_source: Path, tmp_path: Path) -> None:
    arguments = [*COMMAND, "convert", str(large_source)]
    piped = subprocess.run(
        [*arguments, str(tmp_path / "piped")], capture_output=True, text=True, check=True
    )
    assert piped.stderr == ""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))  # in a terminal of no width tqdm draws nothing
    process = subprocess.Popen(
        [*arguments, str(tmp_path / "drawn")], stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    drawn = _read_all(ours)
    assert process.wait() == 0
    assert re.search(r"packing: +\d+%.*B/s", drawn)


def _read_all(fd: int) -> str:
    pieces = []
    while True:
        try:
            piece = os.read(fd, 4096)
        except OSError:  # Linux reports the end of a terminal as EIO
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(fd)
    return b"".join(pieces).decode()


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda stop: stop.name
)
@pytest.mark.parametrize("verb", ["convert", "export"])
def test_stopped_half_way(
    verb: str, stop: signal.Signals, large_source: Path, tmp_path: Path
) -> None:
    origin = large_source
    if verb == "export":
        origin = large_source.parent / "packed"
        if not origin.exists():
            assert run(["convert", str(large_source), str(origin), "--quiet"]) == ExitCode.OK
    process = subprocess.Popen(
        [*COMMAND, verb, str(origin), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob("out.partial*/**/model*")):
        time.sleep(0.001)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert stderr == "kandiga-pack: interrupted; nothing was left behind\n"
    assert list(tmp_path.iterdir()) == []


def test_mlx_is_not_imported_to_pack(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from kandiga_pack.cli import run\n"
        f"assert run(['convert', {str(source)!r}, {str(tmp_path / 'packed')!r}]) == 0\n"
        f"assert run(['verify', {str(tmp_path / 'packed')!r}]) == 0\n"
        "print(sorted({'mlx', 'mlx_lm', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_read_enough(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert run(["convert", str(source), str(packed), "--quiet"]) == ExitCode.OK
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "inspect", str(packed), "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, "")
