"""Cases with many tokens: panels that are not full, slabs that end early, experts of all sizes."""

import itertools
from collections.abc import Iterator

import numpy as np

from kernels.cases import Case
from kernels.quant_cases import expert_case, matmul_case
from kernels.quant_weights import ARITHMETIC_NAMES, BITS, GROUP_SIZES, Weight, plain, quantized


def matrix_cases() -> Iterator[Case]:
    """Every bits x group size x arithmetic, with sizes that change from one to the next."""
    num_tokens = itertools.cycle((4, 5, 15, 16, 17, 31, 33, 64, 97, 130))
    out_features = itertools.cycle((1, 15, 16, 31, 32, 33, 65, 100))
    num_groups = itertools.cycle((1, 2, 3, 4, 5, 7, 9))
    dtypes = itertools.cycle(("bf16", "f16", "f32"))
    for bits, group_size, arithmetic in itertools.product(BITS, GROUP_SIZES, ARITHMETIC_NAMES):
        rng = np.random.default_rng(bits * 1000 + group_size)
        tokens, rows = next(num_tokens), next(out_features)
        columns = next(num_groups) * group_size
        w = quantized(
            rng,
            rows,
            columns,
            bits=bits,
            group_size=group_size,
            dtype=next(dtypes),
            bias_dtype="f32" if rows % 2 else None,
            arithmetic=arithmetic,
        )
        x = rng.standard_normal((tokens, columns)).astype(np.float32)
        id = f"gemm-{bits}bit-g{group_size}-{rows}x{columns}-t{tokens}-{arithmetic}"
        yield matmul_case(id, [w], x)


def long_cases() -> Iterator[Case]:
    """Rows longer than the chunk whose scales are at hand, panels more than a call takes."""
    rng = np.random.default_rng(3)
    for arithmetic, (columns, tokens) in itertools.product(
        ARITHMETIC_NAMES, ((4096 + 64, 20), (64, 300), (9 * 1024, 33))
    ):
        w = quantized(rng, 40, columns, bits=4, group_size=64, dtype="bf16", arithmetic=arithmetic)
        x = rng.standard_normal((tokens, columns)).astype(np.float32)
        yield matmul_case(f"gemm-long-{columns}-t{tokens}-{arithmetic}", [w], x)


def plain_cases() -> Iterator[Case]:
    for dtype, columns in itertools.product(("bf16", "f16", "f32"), (1, 31, 37, 129, 300, 2100)):
        rng = np.random.default_rng(columns)
        w = plain(rng, 35, columns, dtype, "f32")
        x = rng.standard_normal((20, columns)).astype(np.float32)
        yield matmul_case(f"gemm-{dtype}-35x{columns}-t20", [w], x)


def value_cases() -> Iterator[Case]:
    """Activations of any size, whose float32 bits must all take part in exact arithmetic."""
    rng = np.random.default_rng(4)
    w = quantized(rng, 33, 256, bits=4, group_size=64, dtype="bf16")
    for scale in (1e-30, 1e-3, 1.0, 1e30):
        x = rng.standard_normal((18, 256)) * scale * 2.0 ** rng.integers(-6, 6, (18, 256))
        yield matmul_case(f"gemm-scale-{scale:g}", [w], x.astype(np.float32))


def experts(count: int, arithmetic: str, bits: int) -> list[list[Weight]]:
    rng = np.random.default_rng(count)
    shapes = ((96, 192), (96, 192), (192, 96))
    return [
        [
            quantized(rng, *shape, bits=bits, group_size=32, dtype="bf16", arithmetic=arithmetic)
            for shape in shapes
        ]
        for _ in range(count)
    ]


def expert_cases() -> Iterator[Case]:
    """Few experts, which threads share, and many, which each thread has to itself."""
    counts = {
        "few": (0, 130, 3, 17),
        "many": (1, 4, 40, 0, 5, 16, 2, 33, 7, 3, 64, 9, 18, 6, 5, 4, 21, 1),
    }
    for arithmetic, (name, rows) in itertools.product(ARITHMETIC_NAMES, counts.items()):
        rng = np.random.default_rng(5)
        x = rng.standard_normal((130, 192)).astype(np.float32)
        tokens = [sorted(rng.permutation(130)[:n].tolist()) for n in rows]
        weights = experts(len(rows), arithmetic, 4)
        yield expert_case(f"gemm-experts-{name}-{arithmetic}", weights, x, tokens)


def all_cases() -> list[Case]:
    """Every case of many tokens; ids are unique."""
    return [
        *matrix_cases(),
        *long_cases(),
        *plain_cases(),
        *value_cases(),
        *expert_cases(),
    ]
