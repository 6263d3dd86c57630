"""The benchmark of many tokens still runs. Its figures are not tested."""

import numpy as np
import pytest

from benchmarks.gemm import bench_matmul


@pytest.mark.parametrize("arithmetic", ["exact", "int16", "int8"])
def test_benchmark_runs(arithmetic: str) -> None:
    memory = np.full(1 << 20, 0x3C, dtype=np.uint8)
    assert bench_matmul(memory, (128, 128), 4, 20, arithmetic) > 0
