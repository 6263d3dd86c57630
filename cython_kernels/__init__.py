"""Float32 kernels for the CPU: one extension module over C, one C file for each instruction set.

csrc/quant_*.c   matrices: affine 2-8 bits and plain f16/bf16/f32, y = x W^T
csrc/vector_*.c  everything else: norms, rope, attention, gated delta rule, routing
csrc/matmul.c, expert.c, attention.c, ...   above the instruction sets: splitting over threads
csrc/dispatch.c, csrc/cpu.c    which instruction set runs; KANDIGA_ISA=scalar|avx2|avx512|neon
csrc/map_guard.c               files that are cut short while they are computed on
csrc/threadpool.c              the one pool of threads in the process
_kernels.pyx, *.pxi            argument checks (ValueError: argument, seen, expected); no GIL in C
reference/                     every kernel in numpy float64, what the tests compare with
"""

from ._kernels import (
    ExpertLayout,
    MapGuard,
    Matrix,
    add,
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
    matmul,
    matmul_many,
    moe_combine,
    num_threads,
    rms_norm,
    rms_norm_gated,
    rope,
    set_num_threads,
    sigmoid_mul,
    sigmoid_scale_add,
    silu_mul,
    split_interleaved,
    top_k_routing,
)

__all__ = [
    "ExpertLayout",
    "MapGuard",
    "Matrix",
    "add",
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
    "matmul",
    "matmul_many",
    "moe_combine",
    "num_threads",
    "rms_norm",
    "rms_norm_gated",
    "rope",
    "set_num_threads",
    "sigmoid_mul",
    "sigmoid_scale_add",
    "silu_mul",
    "split_interleaved",
    "top_k_routing",
]
