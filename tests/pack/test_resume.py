"""Killed at any moment, a conversion goes on, and ends in the same bytes."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats import KexpError, open_set
from interrupting import Killer
from kandiga_pack import convert
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.workspace import Workspace
from split_checkpoint import make_split_checkpoint, weight_files

NUM_LAYERS = 6
# One layer of 4 * 96 KiB fits, two do not: a shard a layer, and one for the dense weights.
SHARD_SIZE = 0.0006
OPTIONS = ("--shard-size", str(SHARD_SIZE))
NUM_SHARDS = NUM_LAYERS + 1
# The last of them are those of the commit and of tidying up, where most can go wrong.
NUM_LAST_OPERATIONS = 18
NUM_OPERATIONS, NUM_TIMES = 17, 15


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split_checkpoint(tmp_path_factory.mktemp("resume") / "source")


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, str]:
    """The digest of each file of an uninterrupted conversion."""
    dest = source.parent / "whole"
    convert(source, dest, shard_bytes=int(SHARD_SIZE * 2**30))
    assert len(list(dest.glob("*.kexp"))) == NUM_SHARDS
    return digests(dest)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as started:
        yield started


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def assert_nothing_unfinished_opens(dest: Path, whole: dict[str, str]) -> None:
    """Whatever opens, the folder or one of its shards, is the finished set."""
    for folder in (dest, dest.with_name(f"{dest.name}.partial") / "set"):
        for path in [folder, *folder.glob("*.kexp")] if folder.exists() else []:
            try:
                open_set(path).close()
            except KexpError:
                continue
            assert digests(folder) == whole


def arguments(source: Path, dest: Path) -> list[str]:
    return ["convert", str(source), str(dest), *OPTIONS]


def finish(killer: Killer, source: Path, dest: Path, whole: dict[str, str]) -> None:
    """Run the same command to its end, and compare."""
    journal = dest.with_name(f"{dest.name}.partial") / "journal"
    was_done = dest.exists() and not journal.exists()
    ended = killer.run(arguments(source, dest))
    assert ended["status"] == (ExitCode.FAILED if was_done else ExitCode.OK)
    assert digests(dest) == whole
    assert [path.name for path in dest.parent.iterdir()] == [dest.name]


def test_killed_at_fifty_moments(
    source: Path, whole: dict[str, str], killer: Killer, tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    first = killer.run(arguments(source, tmp_path / "first" / "packed"))
    assert first["status"] == ExitCode.OK
    count = first["operations"]
    chosen = random.Random(3)
    moments: list[dict[str, float]] = [
        {"operation": count - 1 - back} for back in range(NUM_LAST_OPERATIONS)
    ]
    earlier = range(count - NUM_LAST_OPERATIONS)
    moments += [{"operation": each} for each in chosen.sample(earlier, NUM_OPERATIONS)]
    moments += [{"seconds": chosen.uniform(0, first["seconds"])} for _ in range(NUM_TIMES)]
    assert len(moments) == 50
    num_killed = num_taken_up = 0
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = killer.run(arguments(source, folder / "packed"), **moment)
        num_killed += ended["status"] == -signal.SIGKILL
        assert_nothing_unfinished_opens(folder / "packed", whole)
        num_taken_up += holds_work(folder / "packed")
        finish(killer, source, folder / "packed", whole)
        shutil.rmtree(folder)
    assert num_killed >= NUM_LAST_OPERATIONS + NUM_OPERATIONS
    assert num_taken_up >= NUM_LAST_OPERATIONS  # or resuming was not tested


def holds_work(dest: Path) -> bool:
    journal = dest.with_name(f"{dest.name}.partial") / "journal"
    return journal.exists() and b'"checkpoint"' in journal.read_bytes()


def test_killed_again_and_again(
    source: Path, whole: dict[str, str], killer: Killer, tmp_path: Path
) -> None:
    """Each run is killed a little later than the one before it could go."""
    dest = tmp_path / "packed"
    for step in range(200):
        ended = killer.run(arguments(source, dest), operation=20 + step)
        if ended["status"] == ExitCode.OK:
            break
        assert_nothing_unfinished_opens(dest, whole)
    assert digests(dest) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert step > 5


def half_done(source: Path, dest: Path, killer: Killer) -> Path:
    """Leave a conversion with some shards finished; return its folder."""
    folder = dest.with_name(f"{dest.name}.partial")
    operation = 30
    while not holds_work(dest):
        killer.run(arguments(source, dest), operation=operation)
        operation += 5
    assert (folder / "set").is_dir()
    return folder


def test_what_is_done_is_not_done_again(
    source: Path,
    whole: dict[str, str],
    killer: Killer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = half_done(source, tmp_path / "packed", killer)
    with Workspace(tmp_path / "packed") as workspace:
        (first,) = [each.shard for each in workspace.journal.checkpoints.values() if each.num_rows]
    shard = folder / "set" / f"model-{first + 1:05d}-of-{NUM_SHARDS:05d}.kexp"
    inode = shard.stat().st_ino
    assert run(arguments(source, tmp_path / "packed")) == ExitCode.OK
    assert f"going on with what is in {folder}" in capsys.readouterr().err
    assert (tmp_path / "packed" / shard.name).stat().st_ino == inode
    assert digests(tmp_path / "packed") == whole


def test_another_request_begins_anew(
    source: Path, killer: Killer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = half_done(source, tmp_path / "packed", killer)
    again = ["convert", str(source), str(tmp_path / "packed"), "--shard-size", "0.0012"]
    assert run(again) == ExitCode.OK
    assert f"{folder} is of a conversion with another source or other options" in (
        capsys.readouterr().err
    )
    convert(source, tmp_path / "other", shard_bytes=int(0.0012 * 2**30))
    assert digests(tmp_path / "packed") == digests(tmp_path / "other")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_another_file_beside_begins_anew(
    name: str, killer: Killer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_split_checkpoint(tmp_path / "source")
    half_done(source, tmp_path / "packed", killer)
    document = json.loads((source / name).read_text()) | {"added": 1}
    (source / name).write_text(json.dumps(document))
    assert run(arguments(source, tmp_path / "packed")) == ExitCode.OK
    assert "beginning anew" in capsys.readouterr().err
    assert json.loads((tmp_path / "packed" / name).read_text()) == document


def test_a_source_that_changed_in_between(
    whole: dict[str, str], killer: Killer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_split_checkpoint(tmp_path / "source")
    half_done(source, tmp_path / "packed", killer)
    last = weight_files(source)[-1]
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert run(arguments(source, tmp_path / "packed")) == ExitCode.FAILED
    error = capsys.readouterr().err
    assert f"{last}: changed since the interrupted conversion read it" in error
    assert "--restart" in error
    assert run([*arguments(source, tmp_path / "packed"), "--restart"]) == ExitCode.OK
    assert digests(tmp_path / "packed") != whole
    assert run(["verify", str(tmp_path / "packed"), "--against", str(source)]) == ExitCode.OK


def test_a_finished_shard_that_was_damaged(
    source: Path, killer: Killer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = half_done(source, tmp_path / "packed", killer)
    (shard,) = (folder / "set").glob("model-00002-*.kexp")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(arguments(source, tmp_path / "packed")) == ExitCode.FAILED
    assert "is not as it was left" in capsys.readouterr().err
    assert run([*arguments(source, tmp_path / "packed"), "--restart"]) == ExitCode.OK


@pytest.mark.parametrize("tail", [b"\x00" * 100, b"1234abcd {", b"garbage\n"])
def test_a_journal_with_a_torn_end(
    tail: bytes, source: Path, whole: dict[str, str], killer: Killer, tmp_path: Path
) -> None:
    folder = half_done(source, tmp_path / "packed", killer)
    with (folder / "journal").open("ab") as journal:
        journal.write(tail)
    finish(killer, source, tmp_path / "packed", whole)


def test_stopped_by_the_user(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C keeps what is done, says so, and how to give it up."""
    dest, folder = tmp_path / "packed", tmp_path / "packed.partial"
    large = make_split_checkpoint(tmp_path / "source", num_experts=64, hidden_size=256)
    command = [sys.executable, "-m", "kandiga_pack", "convert", str(large), str(dest)]
    process = subprocess.Popen(
        [*command, "--shard-size", "0.03"], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not holds_work(dest):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert stderr == (
        f"kandiga-pack: interrupted; what is done is kept in {folder}: run the same command to go "
        "on, or with --restart to begin anew\n"
    )
    assert not dest.exists()
    assert holds_work(dest)
    done = subprocess.run([*command, "--quiet"], check=False)
    assert done.returncode == ExitCode.OK
    assert not folder.exists()
