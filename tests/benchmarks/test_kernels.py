"""The kernel benchmark still runs. Its figures are not tested."""

from benchmarks.kernels import Cursor, cold_memory, expert_call, matmul_call, read_call, speeds


def test_benchmark_runs() -> None:
    memory = cold_memory(False, 1 << 21)
    cursor = Cursor(memory)
    calls = {
        "read": read_call(cursor, 1 << 18, 0),
        "matmul": matmul_call(cursor, (128, 128), 4, 1, "int16"),
        "tokens": matmul_call(cursor, (128, 128), 4, 3, "exact"),
        "expert": expert_call(memory, 128, 64, 2, "int8"),
    }
    assert min(speeds(calls, 0).values()) > 0
