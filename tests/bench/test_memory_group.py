"""Control groups: a real one where that is permitted, both versions' files elsewhere."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kandiga_run.bench.memory_group import MemoryGroup, make_memory_group
from kandiga_run.errors import RunError

MIB = 1 << 20
# Joins, says so, takes as many MiB as asked for, says so, waits.
TAKE = """
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
taken = bytearray(int(sys.argv[2]) << 20)
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    try:
        made = make_memory_group(100 * MIB)
    except RunError as error:
        pytest.skip(str(error))
    with made:
        yield made


def take(group: MemoryGroup, mebibytes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TAKE, str(group.processes_file), str(mebibytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_memory_of_a_process_is_counted(group: MemoryGroup) -> None:
    with take(group, 40) as process:
        assert process.stdout
        assert process.stdout.readline() == "taken\n"
        use = group.use()
        assert use.limit_bytes == 100 * MIB
        assert 40 * MIB <= use.usage_bytes <= 100 * MIB
        assert (use.peak_bytes or 0) >= 40 * MIB
        assert use.oom_kills == 0
        assert use.met_limit is False
        process.communicate("")


def test_more_than_the_limit_is_fatal_and_counted(group: MemoryGroup) -> None:
    with take(group, 300) as process:
        assert process.wait(60) == -signal.SIGKILL
    use = group.use()
    assert use.oom_kills == 1
    assert use.met_limit
    assert (use.peak_bytes or 0) <= 100 * MIB


def test_the_group_goes_with_a_process_that_is_killed(group: MemoryGroup) -> None:
    with take(group, 1) as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()
    group.remove()
    assert not group.path.exists()
    group.remove()


def test_a_group_that_was_left_behind_is_removed_by_the_next(group: MemoryGroup) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    left = group.path.with_name(f"kandiga-bench-{ended.pid}-1")
    left.mkdir()
    with make_memory_group(100 * MIB):
        assert not left.exists()
    assert group.path.exists()  # its owner, this process, is alive


def test_version_2_files(tmp_path: Path) -> None:
    values = {
        "memory.current": "5000",
        "memory.peak": "7000",
        "memory.swap.current": "0",
        "memory.stat": "anon 3000\nfile 1500\nkernel 500\n",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
    }
    for name, text in values.items():
        (tmp_path / name).write_text(text)
    use = MemoryGroup(tmp_path, 2, 9000, True).use()
    assert (use.usage_bytes, use.peak_bytes, use.swap_bytes) == (5000, 7000, 0)
    assert (use.file_bytes, use.anonymous_bytes) == (1500, 3000)
    assert (use.limit_hits, use.oom_kills) == (12, 1)


def test_no_controller_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    with pytest.raises(RunError, match=r"no memory controller.*systemd-run") as caught:
        make_memory_group(MIB, root=tmp_path, own=own)
    assert "\n" not in str(caught.value)


def test_a_group_that_may_not_be_divided_says_so(tmp_path: Path) -> None:
    """Version 2, the state of an ordinary user: the folder is there, its files are not ours."""
    own = tmp_path / "cgroup"
    own.write_text("0::/user\n")
    for folder in (tmp_path, tmp_path / "user"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        (folder / "cgroup.controllers").write_text("cpu\n")
        (folder / "cgroup.subtree_control").write_text("\n")
    with pytest.raises(RunError, match="no memory control group can be made here"):
        make_memory_group(MIB, root=tmp_path, own=own)
