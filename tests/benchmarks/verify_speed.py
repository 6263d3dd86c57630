"""Speed of verify and of the validator next to what the disk reads. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/verify_speed.py [--gigabytes 3] [--rounds 3]

Every figure is cold: the pages of the set are dropped first. A rented disk may read twice as fast
in one minute as in the next, so each run of verify and of the validator is held against the plain
reads just before and just after it; the median of those ratios counts. The validator is the program
that people run, by itself: starting Python is in its time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.random_set import write_random_set
from formats import verify_full
from formats.direct import DirectFile, aligned_buffer

_READ_BYTES = 4 << 20
_VALIDATOR = Path(__file__).parents[2] / "specs" / "validate_kexp.py"


def drop_pages(files: list[Path]) -> None:
    """Take the files out of the page cache."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_direct(files: list[Path]) -> None:
    """Read the files from end to end past the page cache."""
    buffer = aligned_buffer(_READ_BYTES)
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        file, at = DirectFile(path, fd), 0
        while count := file.read_into(buffer, at):
            at += count
        file.close()
        os.close(fd)


def cat(files: list[Path]) -> None:
    """Read the files as `cat` does."""
    with Path(os.devnull).open("wb") as nowhere:
        subprocess.run(["cat", *files], stdout=nowhere, check=True)


def verify(files: list[Path]) -> None:
    """Verify the set."""
    report = verify_full(files[0].parent)
    if not report.ok:
        raise click.ClickException(str(report.findings[0]))


def validate(files: list[Path]) -> None:
    """Hold the set to the written format."""
    command = [sys.executable, _VALIDATOR, "--quiet", files[0].parent]
    subprocess.run(command, check=True)


def processor_seconds() -> float:
    """Return what this process and those it waited for have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def seconds_of(work: Callable[[list[Path]], None], files: list[Path]) -> tuple[float, float]:
    """Return (wall, processor) seconds of one cold run."""
    drop_pages(files)
    wall, cpu = time.perf_counter(), processor_seconds()
    work(files)
    return time.perf_counter() - wall, processor_seconds() - cpu


@click.command()
@click.option("--gigabytes", default=3.0, help="Size of the set, a tenth of it dense weights.")
@click.option("--rounds", default=3)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write it.")
def main(gigabytes: float, rounds: int, folder: Path | None) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        dest = Path(scratch) / "model"
        total = int(gigabytes * 1e9)
        write_random_set(dest, total_bytes=total - total // 10, dense_bytes=total // 10)
        files = sorted(dest.glob("*.kexp"))
        size = sum(file.stat().st_size for file in files)
        times: dict[str, list[tuple[float, float]]] = {}
        ratios: dict[str, list[float]] = {"verify": [], "validate": []}
        for _ in range(rounds):
            times.setdefault("cat", []).append(seconds_of(cat, files))
            before = seconds_of(read_direct, files)
            for work in (verify, validate):
                run = seconds_of(work, files)
                after = seconds_of(read_direct, files)
                times.setdefault(work.__name__, []).append(run)
                times.setdefault("read_direct", []).append(after)
                ratios[work.__name__].append((before[0] + after[0]) / 2 / run[0])
                before = after
    print(f"{size / 1e9:.2f} GB, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    for name, runs in times.items():
        median = statistics.median(wall for wall, _ in runs)
        busy = statistics.median(cpu / wall for wall, cpu in runs)
        each = " ".join(f"{size / wall / 1e9:.2f}" for wall, _ in runs)
        print(f"{name:12} {size / median / 1e9:5.2f} GB/s  ({each})  {busy:.1f} busy")
    for name, values in ratios.items():
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"{name} / reads beside it: {statistics.median(values):.2f}  ({each})")


if __name__ == "__main__":
    main()
