"""Consuming a checkpoint: no weight is ever nowhere durable, and the disk holds little twice."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from formats import open_set
from interrupting import Killer
from kandiga_pack import convert
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode
from published import make_published
from split_checkpoint import make_split_checkpoint, weight_files

SHARD_SIZE = 0.0006
OPTIONS = ("--shard-size", str(SHARD_SIZE))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of which every test consumes a copy."""
    return make_split_checkpoint(tmp_path_factory.mktemp("consume") / "source")


@pytest.fixture(scope="module")
def whole(kept: Path) -> dict[str, str]:
    return digests(convert(kept, kept.parent / "whole", shard_bytes=int(SHARD_SIZE * 2**30)).path)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as started:
        yield started


@pytest.fixture
def source(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "source"))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def consume(source: Path, dest: Path, *more: str) -> list[str]:
    return ["convert", str(source), str(dest), *OPTIONS, "--consume", *more]


def test_the_source_is_gone_and_the_set_is_the_same(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    assert run(consume(source, tmp_path / "packed", "--quiet")) == ExitCode.OK
    assert digests(tmp_path / "packed") == whole
    assert weight_files(source) == []
    # only weights go
    assert {path.name for path in source.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    }
    assert not (tmp_path / "packed.partial").exists()


def test_the_checkpoint_comes_back(source: Path, kept: Path, tmp_path: Path) -> None:
    assert run(consume(source, tmp_path / "packed", "--quiet")) == ExitCode.OK
    assert run(["export", str(tmp_path / "packed"), str(tmp_path / "back"), "-q"]) == ExitCode.OK
    for path in weight_files(kept):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_killed_at_many_moments(
    kept: Path, whole: dict[str, str], killer: Killer, tmp_path: Path
) -> None:
    """The same bytes in the end, and after each kill every weight is in the source or durable."""
    (tmp_path / "first").mkdir()
    shutil.copytree(kept, tmp_path / "first" / "source")
    command = consume(tmp_path / "first" / "source", tmp_path / "first" / "packed")
    count = killer.run(command)["operations"]
    chosen = random.Random(4)
    num_half_consumed = 0
    for operation in chosen.sample(range(10, count), 20):
        folder = tmp_path / str(operation)
        folder.mkdir()
        source = Path(shutil.copytree(kept, folder / "source"))
        ended = killer.run(consume(source, folder / "packed"), operation=operation)
        assert ended["status"] == -signal.SIGKILL
        left = weight_files(source)
        num_half_consumed += 0 < len(left) < len(weight_files(kept))
        for path in left:  # what is there is whole
            assert path.read_bytes() == (kept / path.name).read_bytes()
        assert_every_weight_is_somewhere(kept, source, folder / "packed.partial" / "set")
        # what was consumed is done without, whether or not more is to be
        again = consume(source, folder / "packed")[: -1 if operation % 2 else None]
        if (folder / "packed.partial" / "journal").exists():
            assert killer.run(again)["status"] == ExitCode.OK
        assert digests(folder / "packed") == whole
        shutil.rmtree(folder)
    assert num_half_consumed > 5


def assert_every_weight_is_somewhere(kept: Path, source: Path, packed: Path) -> None:
    """Each expert and dense tensor of a removed file is, byte for byte, in the unfinished set."""
    removed = [path for path in weight_files(kept) if not (source / path.name).exists()]
    if not removed or not packed.exists():
        return
    written = b"".join(path.read_bytes() for path in sorted(packed.glob("*.kexp")))
    for path in removed:
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                rows = tensor if "switch_mlp" in name else [tensor]
                for row in rows:
                    assert row.tobytes() in written, name


class DiskUse(threading.Thread):
    """Samples what some folders take on the disk; `peak_bytes` over what they took at first."""

    def __init__(self, *folders: Path) -> None:
        super().__init__()
        self._folders = folders
        self._stop_now = threading.Event()
        self._before = self._measure()
        self.peak_bytes = 0

    def _measure(self) -> int:
        total = 0
        for folder in self._folders:
            for parent, _, names in os.walk(folder):
                for name in names:
                    try:
                        total += os.lstat(os.path.join(parent, name)).st_blocks * 512
                    except FileNotFoundError:
                        continue
        return total

    def run(self) -> None:
        while not self._stop_now.is_set():
            self.peak_bytes = max(self.peak_bytes, self._measure() - self._before)

    def stop(self) -> int:
        self._stop_now.set()
        self.join()
        return self.peak_bytes


def test_peak_of_the_disk(tmp_path: Path) -> None:
    """At most one source file and one layer more than the model, and a little for JSON."""
    source = make_split_checkpoint(
        tmp_path / "source", num_layers=8, num_experts=16, hidden_size=256, layers_per_file=1.4
    )
    largest_file = max(path.stat().st_size for path in weight_files(source))
    layer = 16 * 6 * 256**2
    model = sum(path.stat().st_size for path in weight_files(source))
    use = DiskUse(tmp_path)
    use.start()
    try:
        # one .kexp of all: the promise does not hang on the size of a packed shard
        assert run(["convert", str(source), str(tmp_path / "packed"), "-q", "--consume"]) == 0
    finally:
        peak = use.stop()
    slack = 1 << 20  # index, companions, and blocks of the file system not yet given back
    assert peak < largest_file + layer + slack
    assert peak < 0.4 * model  # or the test is of no use


def test_a_disk_with_room_for_little_more_than_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=86m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs Linux and root")
    try:
        source = make_split_checkpoint(
            folder / "source", num_layers=8, num_experts=16, hidden_size=256, layers_per_file=1.4
        )
        command = ["convert", str(source), str(folder / "packed"), "-q"]
        assert run(command) == ExitCode.FAILED  # 50 MB twice
        assert run([*command, "--consume"]) == ExitCode.OK
        with open_set(folder / "packed") as opened:
            assert len(opened.layers) == 8
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def assert_refused(
    command: list[str], code: ExitCode, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == code
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1, error


def test_not_a_link_into_somebody_elses_cache(
    source: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = weight_files(source)[1]
    linked.unlink()
    linked.symlink_to(kept / linked.name)
    command = consume(source, tmp_path / "packed")
    assert_refused(command, ExitCode.FAILED, "a link to", capsys)
    assert len(weight_files(source)) == len(weight_files(kept))
    assert not (tmp_path / "packed.partial").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chown needs root")
def test_not_the_files_of_another_user(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(weight_files(source)[0], 65534, 65534)
    command = consume(source, tmp_path / "packed")
    assert_refused(command, ExitCode.FAILED, "belongs to another user", capsys)


def test_not_a_checkpoint_that_is_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_published(tmp_path / "source", "mixtral")
    command = consume(source, tmp_path / "packed")
    assert_refused(command, ExitCode.FAILED, "laid out as published", capsys)
    quantized = consume(source, tmp_path / "packed", "--quantize", "4")
    assert_refused(quantized, ExitCode.USAGE, "does not go with --quantize", capsys)
    assert weight_files(source)


def test_not_a_file_and_not_a_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    command = consume(tmp_path / "model.gguf", tmp_path / "packed")
    assert_refused(command, ExitCode.USAGE, "is no folder", capsys)
    command = consume(Path("someone/model"), tmp_path / "packed")
    assert_refused(command, ExitCode.USAGE, "removed one by one anyway", capsys)


def half_consumed(source: Path, dest: Path, killer: Killer) -> None:
    operation = 40
    while len(weight_files(source)) in (0, 4):
        ended = killer.run(consume(source, dest), operation=operation)
        assert ended["status"] == -signal.SIGKILL
        operation += 5


def test_what_was_consumed_is_not_thrown_away(
    source: Path, kept: Path, killer: Killer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(weight_files(kept)) == 4
    dest = tmp_path / "packed"
    half_consumed(source, dest, killer)
    restart = consume(source, dest, "--restart")
    assert_refused(restart, ExitCode.FAILED, "was consumed", capsys)
    other = ["convert", str(kept), str(dest)]
    assert_refused(other, ExitCode.FAILED, "some of whose files are gone already", capsys)
    for path in weight_files(kept):
        shutil.copy2(path, source)
    assert run([*restart, "-q"]) == ExitCode.OK


def test_a_file_put_back_is_left_alone(
    source: Path, kept: Path, whole: dict[str, str], killer: Killer, tmp_path: Path
) -> None:
    """It has another time than the one consumed, so it is not that one."""
    half_consumed(source, tmp_path / "packed", killer)
    missing = next(path for path in weight_files(kept) if not (source / path.name).exists())
    shutil.copy(missing, source)
    assert run(consume(source, tmp_path / "packed", "-q")) == ExitCode.OK
    assert [path.name for path in weight_files(source)] == [missing.name]
    assert digests(tmp_path / "packed") == whole


def test_a_file_that_changed_is_not_removed(
    source: Path, killer: Killer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_consumed(source, tmp_path / "packed", killer)
    last = weight_files(source)[-1]
    os.utime(last)
    command = consume(source, tmp_path / "packed")
    assert_refused(command, ExitCode.FAILED, "changed since the interrupted conversion", capsys)
    assert last.exists()
