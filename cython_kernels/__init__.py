"""Float32 kernels for the CPU: one extension module over C, one C file for each instruction set.

csrc/quant_*.c   matrices: affine 2-8 bits and plain f16/bf16/f32, y = x W^T
csrc/gemm_*.c    matrices and experts with many tokens, on AMX tiles
csrc/vector_*.c  everything else: norms, rope, attention, gated delta rule, routing
csrc/turboquant_*.c   the compressed KV cache: coding, attention on the codes
csrc/matmul.c, expert.c, attention.c, ...   above the instruction sets: splitting over threads
csrc/dispatch.c, csrc/cpu.c    which instruction set runs; KANDIGA_ISA=scalar|avx2|avx512|amx|neon
csrc/block_reader.c, kernel_queue.c   reads of whole blocks, many at once
csrc/map_guard.c               files that are cut short while they are computed on
csrc/threadpool.c              the one pool of threads in the process
csrc/read_memory.c             the read loop that the memory ceiling is measured with
csrc/time_split.c              what kernels spend their time on
bound.pxi                      kernels bound to their arrays: checked once, called every token
_kernels.pyx, *.pxi            argument checks (ValueError: argument, seen, expected); no GIL in C
reference/                     every kernel in numpy float64, what the tests compare with
"""

from importlib import import_module

try:
    import_module(f"{__name__}._kernels")
except ModuleNotFoundError as _error:
    if _error.name != f"{__name__}._kernels":
        raise
    raise ImportError(
        f"{__name__}: the kernels are not built in {__path__[0]}; where an installed package is "
        "meant, go to another folder than its source (Python looks in the current one first), "
        "else build them with `make env`"
    ) from _error
from ._kernels import (
    READ_ORDERS,
    TIME_ATTENTION,
    TIME_DENSE,
    TIME_EXPERTS,
    TIME_GATED_DELTA,
    TIME_KV_CODING,
    TIME_ROUTING,
    AddRmsNorm,
    BlockReader,
    Bound,
    ExpertLayout,
    ExpertSum,
    GatedDeltaHeads,
    MapGuard,
    Matrix,
    Projections,
    RotatedHeads,
    SiluMul,
    SplitInterleaved,
    Steps,
    TokenExperts,
    TopKRouting,
    TurboQuantBlocks,
    add,
    add_query_energies,
    add_rms_norm,
    arm_map_guards,
    attention,
    available_isas,
    causal_conv,
    cpu_count,
    embed_rows,
    expert_mlp,
    expert_scratch,
    gated_delta,
    gated_delta_gates,
    head_rms_norm,
    isa,
    kv_append,
    l2_normalize_heads,
    label_time,
    matmul,
    matmul_many,
    moe_combine,
    num_threads,
    read_memory,
    read_ranges,
    rms_norm,
    rms_norm_gated,
    rope,
    set_num_threads,
    set_rows_as_alone,
    sigmoid_mul,
    sigmoid_scale_add,
    silu_mul,
    split_interleaved,
    time_totals,
    top_k_routing,
    turboquant_attention,
)

__all__ = [
    "READ_ORDERS",
    "TIME_ATTENTION",
    "TIME_DENSE",
    "TIME_EXPERTS",
    "TIME_GATED_DELTA",
    "TIME_KV_CODING",
    "TIME_ROUTING",
    "AddRmsNorm",
    "BlockReader",
    "Bound",
    "ExpertLayout",
    "ExpertSum",
    "GatedDeltaHeads",
    "MapGuard",
    "Matrix",
    "Projections",
    "RotatedHeads",
    "SiluMul",
    "SplitInterleaved",
    "Steps",
    "TokenExperts",
    "TopKRouting",
    "TurboQuantBlocks",
    "add",
    "add_query_energies",
    "add_rms_norm",
    "arm_map_guards",
    "attention",
    "available_isas",
    "causal_conv",
    "cpu_count",
    "embed_rows",
    "expert_mlp",
    "expert_scratch",
    "gated_delta",
    "gated_delta_gates",
    "head_rms_norm",
    "isa",
    "kv_append",
    "l2_normalize_heads",
    "label_time",
    "matmul",
    "matmul_many",
    "moe_combine",
    "num_threads",
    "read_memory",
    "read_ranges",
    "rms_norm",
    "rms_norm_gated",
    "rope",
    "set_num_threads",
    "set_rows_as_alone",
    "sigmoid_mul",
    "sigmoid_scale_add",
    "silu_mul",
    "split_interleaved",
    "time_totals",
    "top_k_routing",
    "turboquant_attention",
]
