"""Speed of matrices times many tokens, as in a prefill. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/gemm.py [--isa avx512] [--threads 2]

A GMAC is 10^9 multiplications of a weight with an activation. Weights are spread over more memory
than the caches hold, as in a model. Experts: 256 with 512 tokens of 8 experts each, chosen at
random, which gives an expert 16 tokens give or take 4.
"""

import time
from collections.abc import Callable

import click
import numpy as np

import cython_kernels
from benchmarks.four_bit_expert import expert_layout
from cython_kernels import _kernels

# More than any last-level cache a small machine has.
COLD_BYTES = 1 << 30
ARITHMETIC = ("exact", "int16", "int8")
# (out_features, in_features): linear attention in and out, shared expert up and down, of
# qwen3.5-35b-a3b.
SHAPES = ((12288, 2048), (2048, 4096), (512, 2048), (2048, 512))
NUM_TOKENS = (4, 8, 16, 64, 512)
HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_EXPERTS, TOP_K = 2048, 512, 256, 8


def median_seconds(call: Callable[[int], None], budget_seconds: float = 0.3) -> float:
    """Median time of call(i) over as many calls as the budget allows, at least three."""
    times: list[float] = []
    end = time.perf_counter() + budget_seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call(len(times))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def random_matrix(
    memory: np.ndarray, offset_bytes: int, shape: tuple[int, int], bits: int, arithmetic: str
) -> tuple[cython_kernels.Matrix, int]:
    """A group-64 bf16-scale matrix over bytes of `memory`, and where the next one may begin."""
    out_features, in_features = shape
    groups = out_features * in_features // 64
    parts = []
    for size in (out_features * in_features * bits // 8, groups * 2, groups * 2):
        parts.append(memory[offset_bytes : offset_bytes + size])
        offset_bytes += -(-size // 128) * 128
    matrix = cython_kernels.Matrix.affine(
        *parts,
        out_features=out_features,
        in_features=in_features,
        bits=bits,
        group_size=64,
        scale_dtype="bf16",
        arithmetic=arithmetic,
    )
    return matrix, offset_bytes


def bench_matmul(
    memory: np.ndarray, shape: tuple[int, int], bits: int, num_tokens: int, arithmetic: str
) -> float:
    """GMAC/s of matmul over cold matrices."""
    out_features, in_features = shape
    matrices = []
    offset_bytes = 0
    size = out_features * in_features * (bits + 1) // 8
    while offset_bytes + size < len(memory) and len(matrices) < 64:
        matrix, offset_bytes = random_matrix(memory, offset_bytes, shape, bits, arithmetic)
        matrices.append(matrix)
    x = np.random.default_rng(0).standard_normal((num_tokens, in_features)).astype(np.float32)
    out = np.empty((num_tokens, out_features), dtype=np.float32)

    def call(i: int) -> None:
        cython_kernels.matmul(matrices[i % len(matrices)], x, out)

    return out_features * in_features * num_tokens / median_seconds(call) / 1e9


def bench_experts(memory: np.ndarray, num_tokens: int, arithmetic: str) -> float:
    """GMAC/s of expert_mlp for all experts of a layer and a chunk of tokens."""
    layout = expert_layout(HIDDEN_SIZE, INTERMEDIATE_SIZE, arithmetic)
    stride = -(-layout.payload_bytes // 16384) * 16384
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((num_tokens, NUM_EXPERTS)), axis=1)[:, :TOP_K]
    tokens = [np.flatnonzero((chosen == e).any(axis=1)) for e in range(NUM_EXPERTS)]
    offsets = np.cumsum([0, *(len(t) for t in tokens)]).astype(np.int32)
    rows = np.concatenate(tokens).astype(np.int32)
    x = rng.standard_normal((num_tokens, HIDDEN_SIZE)).astype(np.float32)
    out = np.empty((len(rows), HIDDEN_SIZE), dtype=np.float32)
    scratch = cython_kernels.expert_scratch(layout, len(rows))
    num_blocks = len(memory) // stride

    def call(i: int) -> None:
        blocks = (np.arange(NUM_EXPERTS) + i * NUM_EXPERTS) % num_blocks
        addresses = blocks.astype(np.uint64) * np.uint64(stride) + np.uint64(memory.ctypes.data)
        cython_kernels.expert_mlp(layout, addresses, offsets, rows, x, out, scratch)

    macs = 3 * HIDDEN_SIZE * INTERMEDIATE_SIZE * len(rows)
    return macs / median_seconds(call, 1.0) / 1e9


@click.command()
@click.option("--isa", default=None, help="Instruction set; the best one otherwise.")
@click.option("--threads", default=None, type=int, help="Threads; one per processor otherwise.")
@click.option("--arithmetic", default=None, help="One of exact, int16, int8; all otherwise.")
def main(isa: str | None, threads: int | None, arithmetic: str | None) -> None:
    """Print GMAC/s of matrices and experts times many tokens."""
    if isa:
        _kernels._force_isa(isa)
    if threads:
        cython_kernels.set_num_threads(threads)
    # Bytes 0x3c keep bfloat16 scales finite and small.
    memory = np.full(COLD_BYTES, 0x3C, dtype=np.uint8)
    print(f"{cython_kernels.isa()}, {cython_kernels.num_threads()} threads, GMAC/s")
    for mode in (arithmetic,) if arithmetic else ARITHMETIC:
        for shape in SHAPES:
            speeds = [f"{t}: {bench_matmul(memory, shape, 4, t, mode):.0f}" for t in NUM_TOKENS]
            print(f"{mode} {shape[0]}x{shape[1]} 4 bits, tokens " + ", ".join(speeds), flush=True)
        for num_tokens in (128, 512):
            speed = bench_experts(memory, num_tokens, mode)
            print(f"{mode} 256 experts, {num_tokens} tokens: {speed:.0f}", flush=True)


if __name__ == "__main__":
    main()
