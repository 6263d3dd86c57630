"""The kernel benchmark still runs. Its figures are not tested."""

import numpy as np

from benchmarks.kernels import bench_expert, bench_matmul


def test_benchmark_runs() -> None:
    memory = np.full(1 << 20, 0x3C, dtype=np.uint8)
    for num_tokens in (1, 3):
        assert min(bench_matmul(memory, 128, 128, 4, num_tokens)) > 0
    assert min(bench_expert(memory, 128, 64, 2, 1)) > 0
