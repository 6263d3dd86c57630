"""Reading a token's weights where they lie: all of them, and only when they are there."""

import numpy as np
import pytest

from cython_kernels import Matrix
from kandiga_run.engine import Residency, load_engine
from kandiga_run.native.engine import NativeEngine
from kandiga_run.native.reading_alone import _cut, bytes_per_second, dense_extents
from packed import PackedModels


@pytest.mark.parametrize("residency", ["mapped", "owned"])
def test_experts_must_be_in_memory(packed: PackedModels, residency: Residency) -> None:
    engine = load_engine(packed("qwen3_moe").container, engine="native", residency=residency)
    assert isinstance(engine, NativeEngine)
    rng = np.random.default_rng(0)
    assert engine.weights_bytes_per_second(rng) is None
    engine.forward(np.arange(3, 200, dtype=np.int32), engine.new_state(256))
    speed = engine.weights_bytes_per_second(rng)
    assert speed is not None
    assert 1e6 < speed < 1e13
    matrices = engine._weights.matrices
    read = sum(num_bytes for _, num_bytes in dense_extents(matrix for matrix, _ in matrices))
    dense = engine._model.dense
    assert read == sum(dense[name].length_bytes for _, parts in matrices for name in parts)
    engine.close()


def test_a_matrix_says_where_its_parts_lie() -> None:
    rows, columns = 48, 128
    weight = np.zeros((rows, columns // 8), np.uint32)
    scales, biases = np.zeros((2, rows, columns // 64), np.uint16)
    matrix = Matrix.affine(
        *(weight, scales, biases),
        out_features=rows,
        in_features=columns,
        bits=4,
        group_size=64,
        scale_dtype="bf16",
    )
    parts = (weight, scales, biases)
    assert matrix.extents == tuple((part.ctypes.data, part.nbytes) for part in parts)
    plain = np.zeros((rows, columns), np.float32)
    matrix = Matrix.dense(plain, out_features=rows, in_features=columns, dtype="f32")
    assert matrix.extents == ((plain.ctypes.data, plain.nbytes),)


def test_pieces_cover_an_extent_from_its_first_whole_line_on() -> None:
    pieces = list(_cut((1000, 2_000_000)))
    assert pieces[0][0] == 1024
    assert sum(length for _, length in pieces) == 2_001_000 - 1024
    assert all(start % 64 == 0 for start, _ in pieces)
    memory = np.ones(3 << 20, np.uint8)
    assert bytes_per_second([(memory.ctypes.data, memory.nbytes)]) > 0
