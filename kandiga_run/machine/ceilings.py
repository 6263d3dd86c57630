"""What this machine can do at best, measured: memory, disk, and our own kernels."""

from __future__ import annotations

import math
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cython_kernels import READ_ORDERS, Matrix, matmul, read_memory
from formats.direct import DIRECT_ALIGN, DirectFile
from kandiga_run.engine.arithmetic import Arithmetic
from kandiga_run.experts.pages import address_of
from kandiga_run.memory.use import available_bytes

_HUGE_PAGE = 2 << 20
# Larger than any last-level cache in use, smaller than what a machine with 4 GB can spare.
_MEMORY_BYTES = 1 << 30
_SEQUENTIAL_BYTES = 8 << 20


@dataclass(frozen=True)
class MemoryCeiling:
    """Bytes a second that all threads read from memory that no cache holds."""

    #: None when the system gave no huge pages
    huge_pages: float | None
    small_pages: float

    @property
    def best(self) -> float:
        """Return the faster of the two."""
        return max(self.huge_pages or 0.0, self.small_pages)


@dataclass(frozen=True)
class DiskCeiling:
    """Bytes a second read from the disk into memory, past the page cache where that is allowed."""

    random: float
    sequential: float
    #: of a random read
    block_bytes: int
    #: reads in flight
    depth: int
    #: False when the file system refused O_DIRECT: the page cache may have answered
    direct: bool


def memory_ceiling(num_bytes: int = _MEMORY_BYTES, seconds: float = 0.5) -> MemoryCeiling:
    """Return how fast all threads of the kernels read memory of both page sizes.

    num_bytes: of the buffer, less when little memory is free. seconds: spent reading each.
    """
    num_bytes = min(num_bytes, available_bytes() // 4) // _HUGE_PAGE * _HUGE_PAGE
    num_bytes = max(num_bytes, 8 * _HUGE_PAGE)
    small, _ = _memory_speed(num_bytes, seconds, huge=False)
    huge, got_huge_pages = _memory_speed(num_bytes, seconds, huge=True)
    return MemoryCeiling(huge if got_huge_pages else None, small)


def disk_ceiling(
    paths: Sequence[Path],
    block_bytes: int,
    depth: int,
    *,
    seconds: float = 1.0,
    seed: int = 0,
) -> DiskCeiling:
    """Return how fast blocks of these files are read, at random places and one after the other.

    block_bytes: rounded up to what direct reads need. depth: reads in flight, one thread each.
    Raises OSError when a file cannot be read.
    """
    block_bytes = -(-block_bytes // DIRECT_ALIGN) * DIRECT_ALIGN
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(path)) for path in paths]
        anywhere = _read_speed(files, _random_places(files, block_bytes, seed), depth, seconds)
        in_order = _read_speed(files, _places_in_order(files), depth, seconds)
        return DiskCeiling(
            random=anywhere,
            sequential=in_order,
            block_bytes=block_bytes,
            depth=depth,
            direct=all(file.direct.direct for file in files),
        )


def kernel_ceiling(
    arithmetic: Arithmetic = "exact", num_tokens: int = 512, seconds: float = 0.5
) -> float:
    """Return the multiply-adds a second of our 4-bit matrix kernel with weights in the caches."""
    out_features, in_features, group_size = 2048, 2048, 64
    rng = np.random.default_rng(0)
    groups = (out_features, in_features // group_size)
    weight = rng.integers(0, 1 << 32, (out_features, in_features // 8), np.uint32)
    scales = np.full(groups, 0.01, np.float32)
    matrix = Matrix.affine(
        weight,
        scales,
        scales,
        out_features=out_features,
        in_features=in_features,
        bits=4,
        group_size=group_size,
        scale_dtype="f32",
        arithmetic=arithmetic,
    )
    x = rng.standard_normal((num_tokens, in_features), np.float32)
    out = np.empty((num_tokens, out_features), np.float32)
    best = _best_seconds(lambda: matmul(matrix, x, out), seconds)
    return num_tokens * out_features * in_features / best


def _memory_speed(num_bytes: int, seconds: float, *, huge: bool) -> tuple[float, bool]:
    """Return (bytes a second, whether most pages are huge) of the fastest way through memory."""
    before = _huge_page_bytes()
    memory = _huge_buffer(num_bytes) if huge else _small_buffer(num_bytes)
    best = _fastest_read(memory, seconds)
    return num_bytes / best, _huge_page_bytes() - before > num_bytes // 2


def _fastest_read(memory: memoryview, seconds: float) -> float:
    """Return the seconds of the fastest way through memory, after writing all of it."""
    array = np.frombuffer(memory, np.uint8)
    array.fill(1)  # pages that were never written are all the same page of zeros
    each = seconds / len(READ_ORDERS)
    return min(_best_seconds(partial(read_memory, array, order), each) for order in READ_ORDERS)


def _huge_page_bytes() -> int:
    """Return the anonymous huge pages of this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("AnonHugePages:")]
    return int(found[0]) * 1024 if found else 0


def _best_seconds(work: Callable[[], object], seconds: float) -> float:
    """Return the shortest time the work took, in as many runs as fit; two at least."""
    best, deadline, runs = math.inf, time.perf_counter() + seconds, 0
    while runs < 2 or time.perf_counter() < deadline:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
        runs += 1
    return best


@dataclass(frozen=True)
class _File:
    direct: DirectFile
    fd: int
    size_bytes: int

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.direct.close()
        os.close(self.fd)


#: (file, offset_bytes, length_bytes)
_Place = tuple[int, int, int]


def _opened(path: Path) -> _File:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return _File(DirectFile(path, fd), fd, os.fstat(fd).st_size)


def _random_places(files: Sequence[_File], block_bytes: int, seed: int) -> Iterator[_Place]:
    """Yield blocks in random order, each once before any comes again."""
    places = [
        (number, offset, min(block_bytes, file.size_bytes - offset))
        for number, file in enumerate(files)
        for offset in range(0, file.size_bytes, block_bytes)
    ]
    rng = random.Random(seed)
    while True:
        rng.shuffle(places)
        yield from places


def _places_in_order(files: Sequence[_File]) -> Iterator[_Place]:
    while True:
        for number, file in enumerate(files):
            for offset in range(0, file.size_bytes, _SEQUENTIAL_BYTES):
                yield number, offset, min(_SEQUENTIAL_BYTES, file.size_bytes - offset)


def _read_speed(
    files: Sequence[_File], places: Iterator[_Place], depth: int, seconds: float
) -> float:
    """Return bytes a second of `depth` threads that read place after place."""
    lock = threading.Lock()
    totals = [0] * depth
    errors: list[OSError] = []
    buffers = [_huge_buffer(_SEQUENTIAL_BYTES) for _ in range(depth)]

    def work(number: int) -> None:
        buffer = buffers[number]
        try:
            while time.perf_counter() < deadline:
                with lock:
                    file, offset, length = next(places)
                # O_DIRECT takes whole sectors only, also at the end of the file.
                length = -(-length // DIRECT_ALIGN) * DIRECT_ALIGN
                totals[number] += files[file].direct.read_into(buffer[:length], offset)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(depth)]
    started = time.perf_counter()
    deadline = started + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(totals) / (time.perf_counter() - started)


def _huge_buffer(num_bytes: int) -> memoryview:
    """Return memory like the expert store's slots: aligned to huge pages, and of them."""
    return _buffer(num_bytes, getattr(mmap, "MADV_HUGEPAGE", None))


def _small_buffer(num_bytes: int) -> memoryview:
    return _buffer(num_bytes, getattr(mmap, "MADV_NOHUGEPAGE", None))


def _buffer(num_bytes: int, advice: int | None) -> memoryview:
    """Return memory that goes when the last view of it does, an interruption's included."""
    # Python's default is shared memory, which has no transparent huge pages.
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = memoryview(memory)
    start = -address_of(whole) % _HUGE_PAGE
    if advice is not None:
        memory.madvise(advice, start, num_bytes)
    return whole[start : start + num_bytes]
