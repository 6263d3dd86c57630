"""Speed of the kernels of a decode step next to what this machine's memory gives. Not a test.

    PYTHONPATH=tests python tests/benchmarks/kernels.py [--isa avx2vnni] [--threads 1] [--mapped]

Weights are spread over more memory than the caches hold: every call finds them cold. GB/s counts
the bytes of codes, scales and biases. All kernels take turns, so that a slow moment of the machine
is everybody's; medians. The ceiling is the fastest way of only reading the same memory, in the same
turns. Many tokens at once: gemm.py.
"""

import mmap
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import click
import numpy as np
from numpy.typing import NDArray

import cython_kernels
from benchmarks.four_bit_expert import expert_layout
from cython_kernels import READ_ORDERS, _kernels, read_memory

# More than any last-level cache a small machine has.
COLD_BYTES = 1 << 30
PAGE_BYTES = 2 << 20

#: Does one piece of work over cold memory and returns the bytes it read.
Call = Callable[[], int]


def cold_memory(mapped: bool, num_bytes: int = COLD_BYTES) -> NDArray[np.uint8]:
    """Return 0x3c bytes (finite bfloat16 scales) in huge pages, or in the page cache of a file."""
    if mapped:
        with tempfile.TemporaryFile(dir=".") as file:
            for _ in range(0, num_bytes, PAGE_BYTES):
                file.write(b"\x3c" * PAGE_BYTES)
            file.flush()
            return np.frombuffer(mmap.mmap(file.fileno(), num_bytes, prot=mmap.PROT_READ), np.uint8)
    # Private: shared memory has no huge pages unless the system is told so.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    area = mmap.mmap(-1, num_bytes + PAGE_BYTES, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(area, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    memory = memory[start : start + num_bytes]
    memory[:] = 0x3C
    return memory


class Cursor:
    """Walks through memory, so that what is handed out next was used longest ago."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self._offset_bytes = 0

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return the next bytes, from a multiple of 128 on."""
        if self._offset_bytes + num_bytes > len(self._memory):
            self._offset_bytes = 0
        begin = self._offset_bytes
        self._offset_bytes += -(-num_bytes // 128) * 128
        return self._memory[begin : begin + num_bytes]


def read_call(cursor: Cursor, num_bytes: int, order: int) -> Call:
    """Only read."""

    def call() -> int:
        read_memory(cursor.take(num_bytes), order)
        return num_bytes

    return call


def matmul_call(
    cursor: Cursor, shape: tuple[int, int], bits: int, num_tokens: int, arithmetic: str
) -> Call:
    """One matrix (out, in) of group size 64 with bfloat16 scales."""
    out_features, in_features = shape
    groups_bytes = out_features * in_features // 64 * 2
    sizes = (out_features * in_features * bits // 8, groups_bytes, groups_bytes)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_tokens, in_features)).astype(np.float32)
    out = np.empty((num_tokens, out_features), dtype=np.float32)

    def call() -> int:
        matrix = cython_kernels.Matrix.affine(
            *(cursor.take(size) for size in sizes),
            out_features=out_features,
            in_features=in_features,
            bits=bits,
            group_size=64,
            scale_dtype="bf16",
            arithmetic=arithmetic,
        )
        cython_kernels.matmul(matrix, x, out)
        return sum(sizes)

    return call


def expert_call(
    memory: NDArray[np.uint8], hidden_size: int, intermediate: int, top_k: int, arithmetic: str
) -> Call:
    """top_k experts, strewn over memory, for one token."""
    layout = expert_layout(hidden_size, intermediate, arithmetic)
    stride = -(-layout.payload_bytes // 16384) * 16384
    rng = np.random.default_rng(0)
    blocks = rng.permutation(len(memory) // stride).astype(np.uint64) * np.uint64(stride)
    addresses = blocks + np.uint64(memory.ctypes.data)
    x = rng.standard_normal((1, hidden_size)).astype(np.float32)
    rows = np.zeros(top_k, dtype=np.int32)
    offsets = np.arange(top_k + 1, dtype=np.int32)
    out = np.empty((top_k, hidden_size), dtype=np.float32)
    scratch = cython_kernels.expert_scratch(layout, top_k)

    def batches() -> Iterator[NDArray[np.uint64]]:
        while True:
            for first in range(0, len(addresses) - top_k + 1, top_k):
                yield addresses[first : first + top_k]

    batch = batches()

    def call() -> int:
        cython_kernels.expert_mlp(layout, next(batch), offsets, rows, x, out, scratch)
        return int(layout.payload_bytes) * top_k

    return call


def speeds(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Median GB/s of each call, all taking turns until the time is over."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(seen.values()):
        for name, call in calls.items():
            start = time.perf_counter()
            num_bytes = call()
            seen[name].append(num_bytes / (time.perf_counter() - start) / 1e9)
    return {name: statistics.median(values) for name, values in seen.items()}


def decode_calls(memory: NDArray[np.uint8]) -> dict[str, Call]:
    """The matrices of a decode step of Qwen3.5-35B-A3B, and other formats."""
    cursor = Cursor(memory)
    calls: dict[str, Call] = {}
    for name in ("exact", "int16", "int8"):
        for out_features, in_features in ((8192, 2048), (2048, 4096), (62080, 2048)):
            label = f"{out_features} x {in_features}, 4 bits | {name}"
            calls[label] = matmul_call(cursor, (out_features, in_features), 4, 1, name)
        for top_k in (1, 8):
            calls[f"{top_k} experts 2048 x 512, 4 bits | {name}"] = expert_call(
                memory, 2048, 512, top_k, name
            )
        for bits in (2, 3, 5, 6, 8):
            label = f"8192 x 2048, {bits} bits | {name}"
            calls[label] = matmul_call(cursor, (8192, 2048), bits, 1, name)
    return calls


@click.command()
@click.option("--isa", default=None, help="Instruction set; the best one otherwise.")
@click.option("--threads", default=None, type=int, help="Threads; one per processor otherwise.")
@click.option("--mapped", is_flag=True, help="Weights in a mapped file, not in huge pages.")
@click.option("--seconds", default=20.0, help="How long the kernels take turns.")
def main(isa: str | None, threads: int | None, mapped: bool, seconds: float) -> None:
    """Print GB/s of the kernels, and their fraction of the ceiling, as a table."""
    if isa:
        _kernels._force_isa(isa)
    if threads:
        cython_kernels.set_num_threads(threads)
    memory = cold_memory(mapped)
    reads = {f"read {order}": read_call(Cursor(memory), 32 << 20, order) for order in READ_ORDERS}
    results = speeds(reads | decode_calls(memory), seconds)
    ceiling = max(results.pop(name) for name in reads)
    kind = "mapped file" if mapped else "huge pages"
    print(f"{cython_kernels.isa()}, {cython_kernels.num_threads()} threads, {kind};")
    print(f"reading alone: {ceiling:.1f} GB/s\n")
    print("| kernel, one token | arithmetic | GB/s | of reading |\n|---|---|---|---|")
    for name, speed in results.items():
        print(f"| {name} | {speed:.1f} | {speed / ceiling:.0%} |")


if __name__ == "__main__":
    main()
