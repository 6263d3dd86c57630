"""Float32 kernels for the CPU: one extension module over C, one C file for each instruction set.

csrc/quant_*.c   matrices: affine 2-8 bits and plain f16/bf16/f32, y = x W^T
csrc/vector_*.c  everything else: norms, rope, attention, gated delta rule, routing
csrc/matmul.c, csrc/expert.c   what is above the instruction sets: splitting rows over threads
csrc/dispatch.c, csrc/cpu.c    which instruction set runs; KANDIGA_ISA=scalar|avx2|avx512|neon
csrc/threadpool.c              the one pool of threads in the process
_kernels.pyx, *.pxi            argument checks (ValueError names argument, seen, wanted); no GIL in C
reference.py                   every kernel in numpy float64, what the tests compare with
"""

from ._kernels import (
    ExpertLayout,
    Matrix,
    available_isas,
    cpu_count,
    embed_rows,
    expert_mlp,
    expert_scratch,
    isa,
    matmul,
    matmul_many,
    moe_combine,
    num_threads,
    set_num_threads,
)

__all__ = [
    "ExpertLayout",
    "Matrix",
    "available_isas",
    "cpu_count",
    "embed_rows",
    "expert_mlp",
    "expert_scratch",
    "isa",
    "matmul",
    "matmul_many",
    "moe_combine",
    "num_threads",
    "set_num_threads",
]
