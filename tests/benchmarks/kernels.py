"""Speed of the matrix kernels next to what this machine's memory gives. A program, not a test.

    python tests/benchmarks/kernels.py [--isa avx2] [--threads 2]

Weights are spread over more memory than the caches hold, as in a model: every call finds them cold.
GB/s counts the bytes of codes, scales and biases. The ceiling is the read loop of the same pool.
"""

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

import cython_kernels
from cython_kernels import _kernels

# More than any last-level cache a small machine has.
COLD_BYTES = 1 << 30


def best_seconds(call: Callable[[int], None], *, num_calls: int) -> float:
    """Shortest time of one call: what other programs take is not the kernel's. call(i): call i."""
    best = float("inf")
    for i in range(num_calls):
        start = time.perf_counter()
        call(i)
        best = min(best, time.perf_counter() - start)
    return best


def random_matrix(
    memory: np.ndarray, offset_bytes: int, out_features: int, in_features: int, bits: int
) -> tuple[cython_kernels.Matrix, int]:
    """A group-64 bf16-scale matrix over bytes of `memory`, and where the next one may begin."""
    groups = out_features * in_features // 64
    sizes = (out_features * in_features * bits // 8, groups * 2, groups * 2)
    parts = []
    for size in sizes:
        parts.append(memory[offset_bytes : offset_bytes + size])
        offset_bytes += -(-size // 128) * 128
    matrix = cython_kernels.Matrix.affine(
        *parts,
        out_features=out_features,
        in_features=in_features,
        bits=bits,
        group_size=64,
        scale_dtype="bf16",
    )
    return matrix, offset_bytes


def bench_matmul(
    memory: np.ndarray, out_features: int, in_features: int, bits: int, num_tokens: int
) -> tuple[float, float]:
    """(GB/s of weights, GFLOP/s) of matmul over cold matrices."""
    matrices = []
    offset_bytes = 0
    size = out_features * in_features * (bits + 1) // 8
    while offset_bytes + size < len(memory):
        matrix, offset_bytes = random_matrix(memory, offset_bytes, out_features, in_features, bits)
        matrices.append(matrix)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_tokens, in_features)).astype(np.float32)
    out = np.empty((num_tokens, out_features), dtype=np.float32)

    def call(i: int) -> None:
        cython_kernels.matmul(matrices[i % len(matrices)], x, out)

    num_calls = len(matrices) if num_tokens == 1 else min(len(matrices), max(3, 64 // num_tokens))
    seconds = best_seconds(call, num_calls=num_calls)
    flop = 2 * out_features * in_features * num_tokens
    return matrices[0].nbytes / seconds / 1e9, flop / seconds / 1e9


def bench_expert(
    memory: np.ndarray, hidden_size: int, intermediate: int, top_k: int, num_tokens: int
) -> tuple[float, float]:
    """(microseconds, GB/s of weights) of expert_mlp for top_k cold 4-bit experts."""
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    offset_bytes = 0
    shapes = {
        "gate": (intermediate, hidden_size),
        "up": (intermediate, hidden_size),
        "down": (hidden_size, intermediate),
    }
    for projection, (rows, columns) in shapes.items():
        groups = (rows, columns // 64)
        table = (("weight", "u32", (rows, columns // 8)), ("scales", "bf16", groups))
        for role, dtype, shape in (*table, ("biases", "bf16", groups)):
            parts[projection, role] = {
                "offset_bytes": offset_bytes,
                "dtype": dtype,
                "shape": shape,
                "bits": 4,
                "group_size": 64,
                "mode": "affine",
            }
            offset_bytes += int(np.prod(shape)) * (4 if dtype == "u32" else 2)
    layout = cython_kernels.ExpertLayout(
        parts, hidden_size=hidden_size, moe_intermediate_size=intermediate
    )
    stride = -(-offset_bytes // 16384) * 16384
    num_blocks = len(memory) // stride
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_tokens, hidden_size)).astype(np.float32)
    rows = np.tile(np.arange(num_tokens, dtype=np.int32), top_k)
    offsets = np.arange(top_k + 1, dtype=np.int32) * np.int32(num_tokens)
    out = np.empty((len(rows), hidden_size), dtype=np.float32)
    scratch = cython_kernels.expert_scratch(layout, len(rows))
    order = rng.permutation(num_blocks).astype(np.uint64) * np.uint64(stride)
    addresses = order + np.uint64(memory.ctypes.data)

    def call(i: int) -> None:
        first = i * top_k % (num_blocks - top_k)
        chosen = addresses[first : first + top_k]
        cython_kernels.expert_mlp(layout, chosen, offsets, rows, x, out, scratch)

    seconds = best_seconds(call, num_calls=num_blocks // top_k)
    return seconds * 1e6, layout.payload_bytes * top_k / seconds / 1e9


def read_ceiling(memory: np.ndarray) -> float:
    """GB/s of reading memory with all threads: a float32 matvec, which only loads and adds."""
    columns = 4096
    rows = 4096
    size = rows * columns * 4
    matrices = [
        cython_kernels.Matrix.dense(
            memory[begin : begin + size], out_features=rows, in_features=columns, dtype="f32"
        )
        for begin in range(0, len(memory) - size, size)
    ]
    x = np.zeros((1, columns), dtype=np.float32)
    out = np.empty((1, rows), dtype=np.float32)
    seconds = best_seconds(
        lambda i: cython_kernels.matmul(matrices[i % len(matrices)], x, out),
        num_calls=2 * len(matrices),
    )
    return size / seconds / 1e9


@click.command()
@click.option("--isa", default=None, help="Instruction set; the best one otherwise.")
@click.option("--threads", default=None, type=int, help="Threads; one per processor otherwise.")
def main(isa: str | None, threads: int | None) -> None:
    """Print GB/s and GFLOP/s of the matrix kernels."""
    if isa:
        _kernels._force_isa(isa)
    if threads:
        cython_kernels.set_num_threads(threads)
    # Bytes 0x3c keep bfloat16 scales finite and small.
    memory = np.full(COLD_BYTES, 0x3C, dtype=np.uint8)
    copy_seconds = best_seconds(
        lambda i: np.copyto(memory[: 1 << 28], memory[1 << 29 : 3 << 28]), num_calls=5
    )
    print(f"{cython_kernels.isa()}, {cython_kernels.num_threads()} threads")
    print(f"memcpy, one thread: {2 * (1 << 28) / copy_seconds / 1e9:.1f} GB/s read and written")
    print(f"read, all threads: {read_ceiling(memory):.1f} GB/s")
    for bits in (2, 3, 4, 5, 6, 8):
        speed, _ = bench_matmul(memory, 2048, 2048, bits, 1)
        print(f"matvec 2048x2048 {bits} bits: {speed:.1f} GB/s")
    for tokens in (2, 4, 16, 64, 512):
        _, flops = bench_matmul(memory, 2048, 2048, 4, tokens)
        print(f"matmul 2048x2048 4 bits, {tokens} tokens: {flops:.0f} GFLOP/s")
    for hidden_size, intermediate, top_k in ((2048, 512, 8), (2048, 512, 1), (4096, 1024, 10)):
        micros, speed = bench_expert(memory, hidden_size, intermediate, top_k, 1)
        shape = f"{top_k} experts {hidden_size}x{intermediate}"
        print(f"expert_mlp, {shape}, 1 token: {micros:.0f} us, {speed:.1f} GB/s")


if __name__ == "__main__":
    main()
