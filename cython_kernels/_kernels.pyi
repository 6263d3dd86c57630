from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_I32 = NDArray[np.int32]
_U64 = NDArray[np.uint64]

READ_ORDERS: tuple[int, ...]
TIME_ATTENTION: int
TIME_DENSE: int
TIME_EXPERTS: int
TIME_GATED_DELTA: int
TIME_KV_CODING: int
TIME_ROUTING: int

def label_time(label: int) -> None: ...
def time_totals() -> tuple[int, ...]: ...
def read_memory(memory: NDArray[np.uint8], order: int = 0) -> int: ...
def cpu_count() -> int: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def set_rows_as_alone(on: bool) -> None: ...
def isa() -> str: ...
def available_isas() -> tuple[str, ...]: ...
def _force_isa(name: str) -> None: ...
def arm_map_guards() -> None: ...

class BlockReader:
    under_way: int
    def __init__(self, num_threads: int, use_queue: bool = True) -> None: ...
    @property
    def has_queue(self) -> bool: ...
    @property
    def capacity(self) -> int: ...
    def start(self, reads: list[tuple[int, int, int, int, int]]) -> int: ...
    def wait(self, least: int = 1) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...

class MapGuard:
    def __init__(self, mapping: Any) -> None: ...
    @property
    def fault_offset_bytes(self) -> int | None: ...
    def close(self) -> None: ...

class Matrix:
    nbytes: int
    @property
    def out_features(self) -> int: ...
    @property
    def in_features(self) -> int: ...
    @property
    def arithmetic(self) -> str: ...
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
        arithmetic: str = "exact",
    ) -> Matrix: ...
    @staticmethod
    def dense(
        weight: Any,
        *,
        out_features: int,
        in_features: int,
        dtype: str,
        bias: _F32 | None = None,
        arithmetic: str = "exact",
    ) -> Matrix: ...
    def move(self, weight: Any, scales: Any = None, biases: Any = None) -> None: ...

def matmul(matrix: Matrix, x: _F32, out: _F32) -> None: ...
def matmul_many(matrices: Sequence[Matrix], x: _F32, outs: Sequence[_F32]) -> None: ...
def embed_rows(matrix: Matrix, ids: _I32, out: _F32) -> None: ...

class ExpertLayout:
    hidden_size: int
    moe_intermediate_size: int
    payload_bytes: int
    arithmetic: str
    def __init__(
        self,
        parts: Mapping[tuple[str, str], Mapping[str, Any]],
        *,
        hidden_size: int,
        moe_intermediate_size: int,
        arithmetic: str = "exact",
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
def rms_norm(x: _F32, weight: _F32 | None, eps: float, out: _F32) -> None: ...
def head_rms_norm(x: _F32, weight: _F32 | None, eps: float) -> None: ...
def add_rms_norm(x: _F32, delta: _F32, weight: _F32 | None, eps: float, out: _F32) -> None: ...
def rms_norm_gated(x: _F32, gate: _F32, weight: _F32, eps: float, out: _F32) -> None: ...
def l2_normalize_heads(x: _F32, eps: float, scale: float) -> None: ...
def add(x: _F32, y: _F32) -> None: ...
def silu_mul(gate: _F32, up: _F32, out: _F32) -> None: ...
def sigmoid_mul(x: _F32, gate: _F32, out: _F32) -> None: ...
def sigmoid_scale_add(x: _F32, gate: _F32, out: _F32) -> None: ...
def exponential(x: _F32, out: _F32) -> None: ...
def split_interleaved(x: _F32, outs: Sequence[_F32]) -> None: ...
def rope(
    x: _F32, inv_freq: _F32, offset: int, *, traditional: bool = False, scale: float = 1.0
) -> None: ...
def kv_append(
    keys_new: _F32, values_new: _F32, keys: NDArray[Any], values: NDArray[Any], offset: int
) -> None: ...
def attention(
    q: _F32, keys: NDArray[Any], values: NDArray[Any], kv_len: int, scale: float, out: _F32
) -> None: ...
def causal_conv(x: _F32, weight: _F32, state: _F32, out: _F32) -> None: ...
def gated_delta_gates(
    a: _F32, b: _F32, a_log: _F32, dt_bias: _F32, g_out: _F32, beta_out: _F32
) -> None: ...
def gated_delta(
    q: _F32, k: _F32, v: _F32, g: _F32, beta: _F32, state: _F32, out: _F32
) -> None: ...
def top_k_routing(logits: _F32, top_k: int, mode: str, indices: _I32, scores: _F32) -> None: ...

class Bound:
    max_tokens: int
    def __call__(self, num_tokens: int) -> None: ...

class Projections(Bound):
    def __init__(self, matrices: Sequence[Matrix], x: _F32, outs: Sequence[_F32]) -> None: ...

class GatedDeltaHeads:
    def __init__(
        self,
        qkv: _F32,
        z: _F32,
        a: _F32,
        b: _F32,
        out: _F32,
        *,
        conv_weight: _F32,
        a_log: _F32,
        dt_bias: _F32,
        norm_weight: _F32,
        num_key_heads: int,
        norm_eps: float,
        normalize_eps: float,
    ) -> None: ...
    def __call__(self, num_tokens: int, conv_state: _F32, state: _F32) -> None: ...

class AddRmsNorm(Bound):
    def __init__(self, x: _F32, delta: _F32, weight: _F32, eps: float, out: _F32) -> None: ...

class SiluMul(Bound):
    def __init__(self, gate: _F32, up: _F32, out: _F32) -> None: ...

class TopKRouting(Bound):
    def __init__(self, logits: _F32, mode: str, indices: _I32, scores: _F32) -> None: ...

class RotatedHeads:
    def __init__(
        self,
        queries: _F32,
        keys: _F32,
        inv_freq: _F32,
        *,
        query_norm: _F32 | None = None,
        key_norm: _F32 | None = None,
        eps: float = 0.0,
        traditional: bool = False,
        scale: float = 1.0,
    ) -> None: ...
    def __call__(self, num_tokens: int, position: int) -> None: ...

class SplitInterleaved(Bound):
    def __init__(self, x: _F32, outs: Sequence[_F32]) -> None: ...

class TurboQuantBlocks:
    key_bits: int
    value_bits: int
    qjl: bool
    def __init__(
        self,
        num_kv_heads: int,
        head_dim: int,
        key_bits: int,
        value_bits: int,
        *,
        qjl: bool = False,
    ) -> None: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    def __len__(self) -> int: ...
    def encode(
        self,
        keys: NDArray[np.float16],
        values: NDArray[np.float16],
        start: int,
        energies: _F32 | None = None,
    ) -> None: ...
    def trim(self, num_tokens: int) -> None: ...
    def counts_of_blocks(self) -> list[int]: ...
    def save(self, index: int, out: NDArray[np.uint8]) -> None: ...
    def load(self, block: NDArray[np.uint8], num_tokens: int) -> None: ...
    def decode(self, index: int, head: int, keys: _F32, values: _F32) -> None: ...

def add_query_energies(q: _F32, energies: _F32) -> None: ...
def turboquant_attention(
    blocks: TurboQuantBlocks,
    q: _F32,
    keys: NDArray[np.float16],
    values: NDArray[np.float16],
    kv_len: int,
    scale: float,
    out: _F32,
) -> None: ...

class Steps(Bound):
    def __init__(self, *steps: Bound, label: int | None = None) -> None: ...

class ExpertSum(Bound):
    def __init__(
        self,
        results: _F32,
        scores: _F32,
        order: _I32,
        out: _F32,
        *,
        shared: _F32 | None = None,
        shared_gate: _F32 | None = None,
    ) -> None: ...

class TokenExperts:
    def __init__(
        self,
        layout: ExpertLayout,
        x: _F32,
        experts: _I32,
        results: _F32,
        order: _I32,
        scratch: _F32,
    ) -> None: ...
    def __call__(self, table: _U64) -> bool: ...
