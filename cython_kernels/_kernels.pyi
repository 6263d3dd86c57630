from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_I32 = NDArray[np.int32]
_U64 = NDArray[np.uint64]

def cpu_count() -> int: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def isa() -> str: ...
def available_isas() -> tuple[str, ...]: ...
def _force_isa(name: str) -> None: ...

class Matrix:
    nbytes: int
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @staticmethod
    def affine(
        weight: Any,
        scales: Any,
        biases: Any,
        *,
        out_features: int,
        in_features: int,
        bits: int,
        group_size: int,
        scale_dtype: str,
        bias: _F32 | None = None,
    ) -> Matrix: ...
    @staticmethod
    def dense(
        weight: Any, *, out_features: int, in_features: int, dtype: str, bias: _F32 | None = None
    ) -> Matrix: ...

def matmul(matrix: Matrix, x: _F32, out: _F32) -> None: ...
def matmul_many(matrices: Sequence[Matrix], x: _F32, outs: Sequence[_F32]) -> None: ...
def embed_rows(matrix: Matrix, ids: _I32, out: _F32) -> None: ...

class ExpertLayout:
    hidden_size: int
    moe_intermediate_size: int
    payload_bytes: int
    def __init__(
        self,
        parts: Mapping[tuple[str, str], Mapping[str, Any]],
        *,
        hidden_size: int,
        moe_intermediate_size: int,
    ) -> None: ...

def expert_scratch(layout: ExpertLayout, max_rows: int) -> _F32: ...
def expert_mlp(
    layout: ExpertLayout,
    addresses: _U64,
    row_offsets: _I32,
    rows: _I32,
    x: _F32,
    out: _F32,
    scratch: _F32,
) -> None: ...
def moe_combine(expert_out: _F32, scores: _F32, order: _I32, out: _F32) -> None: ...
