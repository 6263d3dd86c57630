"""Bad arguments of the matrix kernels: one line that names the argument, what came, what should."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cython_kernels
from cython_kernels import ExpertLayout, Matrix

F32 = np.float32


def zeros(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


def affine(**changes: Any) -> Matrix:
    """A good 4-bit matrix (6, 128), but for the changes."""
    arguments: dict[str, Any] = {
        "weight": zeros(6, 16, dtype=np.uint32),
        "scales": zeros(6, 2, dtype=np.float16),
        "biases": zeros(6, 2, dtype=np.float16),
        "out_features": 6,
        "in_features": 128,
        "bits": 4,
        "group_size": 64,
        "scale_dtype": "f16",
    } | changes
    parts = [arguments.pop(name) for name in ("weight", "scales", "biases")]
    return Matrix.affine(*parts, **arguments)


def test_arithmetic_is_checked_and_kept() -> None:
    expected = "arithmetic: 'int4', expected one of exact, int16, int8"
    with pytest.raises(ValueError, match=expected):
        affine(arithmetic="int4")
    with pytest.raises(ValueError, match=expected):
        ExpertLayout(parts(), hidden_size=4, moe_intermediate_size=2, arithmetic="int4")
    assert affine().arithmetic == "exact"
    assert affine(arithmetic="int8").arithmetic == "int8"
    assert dense().arithmetic == "exact"


def dense(out_features: int = 3, in_features: int = 5) -> Matrix:
    w = zeros(out_features, in_features)
    return Matrix.dense(w, out_features=out_features, in_features=in_features, dtype="f32")


def parts(**changes: Any) -> dict[tuple[str, str], Any]:
    """A good layout's parts for hidden size 4 and intermediate size 2, but for the changes."""
    shapes = {"gate": (2, 4), "up": (2, 4), "down": (4, 2)}
    result: dict[tuple[str, str], Any] = {
        (projection, "weight"): {
            "offset_bytes": 128 * i,
            "dtype": "f32",
            "shape": shape,
            "bits": 0,
            "group_size": 0,
            "mode": "none",
        }
        for i, (projection, shape) in enumerate(shapes.items())
    }
    result["up", "weight"].update(changes)
    return result


def layout(**changes: Any) -> ExpertLayout:
    return ExpertLayout(parts(**changes), hidden_size=4, moe_intermediate_size=2)


def mlp(**changes: Any) -> None:
    """expert_mlp of two experts and three rows, but for the changes."""
    block = zeros(96 * 4)
    arguments: dict[str, Any] = {
        "addresses": np.full(2, block.ctypes.data, dtype=np.uint64),
        "row_offsets": np.array([0, 1, 3], dtype=np.int32),
        "rows": np.array([0, 1, 0], dtype=np.int32),
        "x": zeros(2, 4),
        "out": zeros(3, 4),
        "scratch": cython_kernels.expert_scratch(layout(), 3),
    } | changes
    cython_kernels.expert_mlp(layout(), *arguments.values())


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def i32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


BAD_CALLS: list[tuple[str, Callable[[], object]]] = [
    ("7 bits, expected one of (2, 3, 4, 5, 6, 8)", lambda: affine(bits=7)),
    ("group size 16, expected one of (32, 64, 128)", lambda: affine(group_size=16)),
    (
        "in_features 100, expected a multiple of the group size 64",
        lambda: affine(in_features=100),
    ),
    ("scale_dtype: 'f8', expected one of f32, f16, bf16", lambda: affine(scale_dtype="f8")),
    ("shape (0, 128), expected at least (1, 1)", lambda: affine(out_features=0)),
    ("scales: float16 (6, 2), expected uint16 or uint8", lambda: affine(scale_dtype="bf16")),
    (
        "biases: 20 bytes, expected 24 for (6, 128)",
        lambda: affine(biases=zeros(5, 2, dtype=np.float16)),
    ),
    (
        "weight: float32 (6, 16), expected uint32 or uint8",
        lambda: affine(weight=zeros(6, 16)),
    ),
    (
        "weight: uint32 (6, 16), expected a C-contiguous uint32 or uint8 array",
        lambda: affine(weight=zeros(16, 6, dtype=np.uint32).T),
    ),
    ("weight: NoneType, expected a C-contiguous", lambda: affine(weight=None)),
    ("scales: address 0x", lambda: affine(scales=zeros(25, dtype=np.uint8)[1:])),
    ("bias: float64 (6,), expected float32", lambda: affine(bias=np.zeros(6))),
    ("bias: 20 bytes, expected 24 for (6, 128)", lambda: affine(bias=zeros(5))),
    (
        "dtype: 'f64', expected one of f32, f16, bf16",
        lambda: Matrix.dense(zeros(3), out_features=3, in_features=1, dtype="f64"),
    ),
    (
        "x: 4 columns, expected 5, the matrix's",
        lambda: cython_kernels.matmul(dense(), zeros(1, 4), zeros(1, 3)),
    ),
    (
        "x: float32 (5,), expected 2 dimensions",
        lambda: cython_kernels.matmul(dense(), zeros(5), zeros(1, 3)),
    ),
    (
        "out: shape (2, 3), expected (1, 3)",
        lambda: cython_kernels.matmul(dense(), zeros(1, 5), zeros(2, 3)),
    ),
    (
        "out: float32 (1, 3), expected a writable C-contiguous float32 array",
        lambda: cython_kernels.matmul(dense(), zeros(1, 5), read_only(zeros(1, 3))),
    ),
    (
        "outs: 1 arrays, expected 2, one for each matrix",
        lambda: cython_kernels.matmul_many([dense(), dense()], zeros(1, 5), [zeros(1, 3)]),
    ),
    (
        "matrices: 16, expected at most 15",
        lambda: cython_kernels.matmul_many([dense()] * 16, zeros(1, 5), [zeros(1, 3)] * 16),
    ),
    (
        "ids[1]: 3, expected 0 <= index < 3",
        lambda: cython_kernels.embed_rows(dense(), i32(0, 3), zeros(2, 5)),
    ),
    (
        "ids[0]: -1, expected 0 <= index < 3",
        lambda: cython_kernels.embed_rows(dense(), i32(-1), zeros(1, 5)),
    ),
    (
        "ids: int64 (1,), expected int32",
        lambda: cython_kernels.embed_rows(dense(), np.array([0]), zeros(1, 5)),
    ),
    ("up weight: mode 'mxfp4', expected 'affine' or 'none'", lambda: layout(mode="mxfp4")),
    ("up weight: f32 (4, 2), expected f32 (2, 4)", lambda: layout(shape=(4, 2))),
    ("up weight: offset 6, expected a multiple of 4", lambda: layout(offset_bytes=6)),
    ("up weight: offset -4, expected a multiple of 4", lambda: layout(offset_bytes=-4)),
    (
        "up scales: None, expected f16, bf16 or f32",
        lambda: ExpertLayout(
            {
                **parts(),
                ("up", "weight"): {
                    "mode": "affine",
                    "bits": 4,
                    "group_size": 32,
                    "offset_bytes": 0,
                    "dtype": "u32",
                    "shape": (2, 4),
                },
                ("gate", "weight"): {**parts()["gate", "weight"], "shape": (2, 32)},
            },
            hidden_size=32,
            moe_intermediate_size=2,
        ),
    ),
    (
        "gate weight: missing",
        lambda: ExpertLayout({}, hidden_size=4, moe_intermediate_size=2),
    ),
    (
        "gate_up weight: expected projections gate, up and down",
        lambda: ExpertLayout({("gate_up", "weight"): {}}, hidden_size=4, moe_intermediate_size=2),
    ),
    (
        "up global_scale: expected weight, scales, biases and bias only",
        lambda: ExpertLayout(
            {**parts(), ("up", "global_scale"): {}}, hidden_size=4, moe_intermediate_size=2
        ),
    ),
    ("max_rows: 0, expected at least 1", lambda: cython_kernels.expert_scratch(layout(), 0)),
    ("row_offsets: from 0 to 2, expected 0 to 3", lambda: mlp(row_offsets=i32(0, 1, 2))),
    ("row_offsets: from 1 to 3, expected 0 to 3", lambda: mlp(row_offsets=i32(1, 1, 3))),
    ("row_offsets[2]: 3, expected at least 4", lambda: mlp(row_offsets=i32(0, 4, 3))),
    ("row_offsets: shape (2,), expected (3,)", lambda: mlp(row_offsets=i32(0, 3))),
    ("rows[2]: 2, expected 0 <= index < 2", lambda: mlp(rows=i32(0, 1, 2))),
    ("x: shape (2, 5), expected (2, 4)", lambda: mlp(x=zeros(2, 5))),
    ("out: shape (2, 4), expected (3, 4)", lambda: mlp(out=zeros(2, 4))),
    ("scratch: 8 floats, expected at least", lambda: mlp(scratch=zeros(8))),
    ("addresses: int64 (2,), expected uint64", lambda: mlp(addresses=np.zeros(2, np.int64))),
    (
        "order[1]: 2, expected 0 <= index < 2",
        lambda: cython_kernels.moe_combine(zeros(2, 4), zeros(1, 2), i32(0, 2), zeros(1, 4)),
    ),
    (
        "order: shape (3,), expected (2,)",
        lambda: cython_kernels.moe_combine(zeros(2, 4), zeros(1, 2), i32(0, 1, 1), zeros(1, 4)),
    ),
]


@pytest.mark.parametrize(("message", "call"), BAD_CALLS, ids=[m for m, _ in BAD_CALLS])
def test_error_names_the_argument(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_good_ones_are_good() -> None:
    assert affine().nbytes == 6 * 16 * 4 + 2 * 6 * 2 * 2
    assert (affine().out_features, affine().in_features) == (6, 128)
    assert layout().payload_bytes == 256 + 4 * 2 * 4
    mlp()


def test_matrix_is_made_by_its_functions() -> None:
    with pytest.raises(TypeError, match=r"use Matrix\.affine or Matrix\.dense"):
        Matrix()


def test_matrix_holds_its_buffers() -> None:
    weight = bytearray(3 * 5 * 4)
    matrix = Matrix.dense(weight, out_features=3, in_features=5, dtype="f32")
    with pytest.raises(BufferError):
        weight.extend(b"more")
    del matrix
    weight.extend(b"more")


def test_a_matrix_moves_to_the_same_bytes_elsewhere() -> None:
    rng = np.random.default_rng(5)
    weight = rng.integers(0, 2**32, (8, 8), dtype=np.uint32)
    scales, biases = rng.standard_normal((2, 8, 1)).astype(np.float16)
    bias = rng.standard_normal(8).astype(np.float32)
    sizes = {"out_features": 8, "in_features": 64, "bits": 4, "group_size": 64}
    matrix = Matrix.affine(weight, scales, biases, **sizes, scale_dtype="f16", bias=bias)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    before, after = np.empty((2, 1, 8), np.float32)
    cython_kernels.matmul(matrix, x, before)
    copies = [array.copy() for array in (weight, scales, biases)]
    nbytes = matrix.nbytes
    with pytest.raises(ValueError, match="scales: 14 bytes, expected 16"):
        matrix.move(copies[0], copies[1][1:], copies[2])
    matrix.move(*copies)
    for array in (weight, scales, biases):
        array[:] = 0
    cython_kernels.matmul(matrix, x, after)
    np.testing.assert_array_equal(before, after)
    assert matrix.nbytes == nbytes
