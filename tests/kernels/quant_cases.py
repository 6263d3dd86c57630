"""Cases of the matrix kernels: every format, sizes that fit no vector width, values that bite."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cython_kernels
from cython_kernels import reference
from kernels.cases import EPS32, Arrays, Case, Expected
from kernels.quant_weights import (
    ARITHMETIC_NAMES,
    BITS,
    DTYPES,
    F64,
    GROUP_SIZES,
    Weight,
    as_matrix,
    plain,
    quantized,
)

# silu by each instruction set's own exp: a few roundings.
SILU_ROUNDINGS = 8 * EPS32


def _matrix_arrays(weights: Sequence[Weight]) -> tuple[Arrays, dict[str, float]]:
    arrays: Arrays = {}
    params: dict[str, float] = {"num_matrices": len(weights)}
    for i, w in enumerate(weights):
        arrays |= {f"m{i}.{name}": part for name, part in w.parts.items()}
        params |= w.params(f"m{i}")
    return arrays, params


def _matrices(weights: Sequence[Weight], arrays: Arrays) -> list[cython_kernels.Matrix]:
    return [
        as_matrix(w, {name: arrays[f"m{i}.{name}"] for name in w.parts})
        for i, w in enumerate(weights)
    ]


def matmul_case(id: str, weights: Sequence[Weight], x: NDArray[np.float32]) -> Case:
    """matmul_many of one x; a single weight goes through matmul."""
    arrays, params = _matrix_arrays(weights)
    outs = [f"out{i}" for i in range(len(weights))]
    arrays["x"] = x
    for name, w in zip(outs, weights, strict=True):
        arrays[name] = np.full((len(x), w.shape[0]), np.nan, dtype=np.float32)

    def run(arrays: Arrays) -> None:
        matrices = _matrices(weights, arrays)
        if len(matrices) == 1:
            cython_kernels.matmul(matrices[0], arrays["x"], arrays["out0"])
        else:
            cython_kernels.matmul_many(matrices, arrays["x"], [arrays[name] for name in outs])

    def expected() -> dict[str, Expected]:
        return {name: Expected(*w.matmul(x)) for name, w in zip(outs, weights, strict=True)}

    return Case(id, "matmul", arrays, tuple(outs), run, expected, params)


def embed_case(id: str, w: Weight, ids: Sequence[int]) -> Case:
    arrays, params = _matrix_arrays([w])
    arrays["ids"] = np.array(ids, dtype=np.int32)
    arrays["out"] = np.full((len(ids), w.shape[1]), np.nan, dtype=np.float32)

    def run(arrays: Arrays) -> None:
        cython_kernels.embed_rows(_matrices([w], arrays)[0], arrays["ids"], arrays["out"])

    def expected() -> dict[str, Expected]:
        # scale * code and the addition each round once.
        return {"out": Expected(w.values[list(ids)], w.sizes[list(ids)] * 2 * EPS32)}

    return Case(id, "embed_rows", arrays, ("out",), run, expected, params)


PROJECTIONS = ("gate", "up", "down")


def pack_block(weights: Sequence[Weight]) -> tuple[NDArray[np.uint8], dict[tuple[str, str], Any]]:
    """An expert's block, parts at multiples of 128 bytes, and ExpertLayout's description of it."""
    block = bytearray()
    parts = {}
    for projection, w in zip(PROJECTIONS, weights, strict=True):
        for role, array in w.parts.items():
            block.extend(bytes(-len(block) % 128))
            dtype = w.bias_dtype if role == "bias" else w.dtype
            parts[projection, role] = {
                "offset_bytes": len(block),
                "dtype": "u32" if role == "weight" and w.bits else dtype,
                "shape": array.shape,
                "bits": w.bits,
                "group_size": w.group_size,
                "mode": "affine" if w.bits else "none",
            }
            block.extend(array.tobytes())
    return np.frombuffer(bytes(block), dtype=np.uint8), parts


def _projection_params(weights: Sequence[Weight], parts: Mapping[Any, Any]) -> dict[str, float]:
    params: dict[str, float] = {}
    for projection, w in zip(PROJECTIONS, weights, strict=True):
        params |= w.params(projection)
        params[f"{projection}.has_bias"] = (projection, "bias") in parts
        for role in ("weight", "scales", "biases", "bias"):
            part = parts.get((projection, role), {"offset_bytes": 0})
            params[f"{projection}.{role}_offset"] = part["offset_bytes"]
    return params


def _mlp(weights: Sequence[Weight], x: NDArray[np.floating]) -> tuple[F64, F64]:
    """The expert's MLP, and how far a float32 kernel may be from it: errors carried forward."""
    (gate, gate_allowed), (up, up_allowed) = (w.matmul(x) for w in weights[:2])
    activated = reference.silu(gate)
    h = activated * up
    # |silu'| < 1.1
    h_allowed = 1.1 * gate_allowed * np.abs(up) + up_allowed * np.abs(activated)
    h_allowed += SILU_ROUNDINGS * np.abs(h)
    out, out_allowed = weights[2].matmul(h)
    h_doubt = weights[2].rounding_doubt(h, h_allowed)
    return out, out_allowed + h_doubt @ np.abs(weights[2].values).T


def expert_case(
    id: str,
    experts: Sequence[Sequence[Weight]],
    x: NDArray[np.float32],
    tokens: Sequence[Sequence[int]],
) -> Case:
    """Experts of one layout; expert j serves tokens[j]."""
    packed = [pack_block(weights) for weights in experts]
    parts = packed[0][1]
    blocks = [block for block, _ in packed]
    hidden_size = x.shape[1]
    layout = cython_kernels.ExpertLayout(
        parts,
        hidden_size=hidden_size,
        moe_intermediate_size=experts[0][0].shape[0],
        arithmetic=next((w.arithmetic for w in experts[0] if w.bits), "exact"),
    )
    # The last block ends where the buffer does, the others are a multiple of 128 bytes.
    stride = -(-len(blocks[0]) // 128) * 128
    joined = np.zeros(stride * (len(blocks) - 1) + len(blocks[0]), dtype=np.uint8)
    for j, block in enumerate(blocks):
        joined[j * stride : j * stride + len(block)] = block
    rows = np.array(list(itertools.chain(*tokens)), dtype=np.int32)
    ends = np.cumsum([0, *(len(t) for t in tokens)])
    arrays: Arrays = {
        "blocks": joined,
        "addresses": np.arange(len(blocks), dtype=np.uint64) * np.uint64(stride),
        "row_offsets": ends.astype(np.int32),
        "rows": rows,
        "x": x,
        "out": np.full((len(rows), hidden_size), np.nan, dtype=np.float32),
    }

    def run(arrays: Arrays) -> None:
        addresses = arrays["addresses"] + np.uint64(arrays["blocks"].ctypes.data)
        scratch = cython_kernels.expert_scratch(layout, max(len(rows), 1))
        scratch[:] = np.nan
        order = ("row_offsets", "rows", "x", "out")
        cython_kernels.expert_mlp(layout, addresses, *(arrays[name] for name in order), scratch)

    def expected() -> dict[str, Expected]:
        results = [_mlp(w, x[list(t)]) for w, t in zip(experts, tokens, strict=True)]
        values, allowed = (np.concatenate(list(a)) for a in zip(*results, strict=True))
        return {"out": Expected(values, allowed)}

    params = _projection_params(experts[0], parts)
    return Case(id, "expert_mlp", arrays, ("out",), run, expected, params)


def combine_case(id: str, num_tokens: int, top_k: int, hidden_size: int) -> Case:
    rng = np.random.default_rng(num_tokens * 1000 + hidden_size)
    num_rows = num_tokens * top_k
    arrays: Arrays = {
        "expert_out": rng.standard_normal((num_rows, hidden_size)).astype(np.float32),
        "scores": rng.uniform(0, 1, (num_tokens, top_k)).astype(np.float32),
        "order": rng.permutation(num_rows).astype(np.int32),
        "out": rng.standard_normal((num_tokens, hidden_size)).astype(np.float32),
    }

    def run(arrays: Arrays) -> None:
        cython_kernels.moe_combine(*(arrays[n] for n in ("expert_out", "scores", "order", "out")))

    def expected() -> dict[str, Expected]:
        names = ("expert_out", "scores", "order", "out")
        value = reference.moe_combine(*(arrays[name] for name in names))
        absolute = (np.abs(arrays[name]) for name in names)
        return {"out": Expected(value, (top_k + 1) * EPS32 * reference.moe_combine(*absolute))}

    params = {"num_tokens": num_tokens, "top_k": top_k, "hidden_size": hidden_size}
    return Case(id, "moe_combine", arrays, ("out",), run, expected, params)


def _x(rng: np.random.Generator, num_tokens: int, in_features: int) -> NDArray[np.float32]:
    # Not of mean zero: the group sums then matter.
    return (rng.standard_normal((num_tokens, in_features)) + 0.3).astype(np.float32)


def format_cases(arithmetic: str) -> Iterator[Case]:
    """Every bits x group size x scale type, with sizes that change from one to the next."""
    out_features = itertools.cycle((1, 2, 3, 4, 5, 7, 8, 13, 17, 33))
    num_groups = itertools.cycle((1, 2, 3, 4, 5, 6, 7, 9, 11))
    num_tokens = itertools.cycle((1, 2, 1, 3, 4, 1, 5, 6, 7, 1, 8, 13))
    for bits, group_size, dtype in itertools.product(BITS, GROUP_SIZES, DTYPES):
        rng = np.random.default_rng(bits * 1000 + group_size)
        shape = (next(out_features), next(num_groups) * group_size)
        bias_dtype = "f32" if shape[0] % 2 else None
        how: dict[str, Any] = {"bits": bits, "group_size": group_size, "dtype": dtype}
        w = quantized(rng, *shape, bias_dtype=bias_dtype, arithmetic=arithmetic, **how)
        t = next(num_tokens)
        for tokens in {1, t}:
            id = f"{bits}bit-g{group_size}-{dtype}-{shape[0]}x{shape[1]}-t{tokens}-{arithmetic}"
            yield matmul_case(id, [w], _x(rng, tokens, shape[1]))


def plain_cases() -> Iterator[Case]:
    lengths = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 257, 1100)
    num_tokens = itertools.cycle((1, 2, 1, 3, 5, 1, 7))
    for dtype, in_features in itertools.product(DTYPES, lengths):
        rng = np.random.default_rng(in_features)
        tokens = next(num_tokens)
        w = plain(rng, 1 + in_features % 7, in_features, dtype, "f32" if tokens == 1 else None)
        id = f"{dtype}-{w.shape[0]}x{in_features}-t{tokens}"
        yield matmul_case(id, [w], _x(rng, tokens, in_features))


def large_cases(arithmetic: str) -> Iterator[Case]:
    """Longer than any block a kernel cuts columns, rows or tokens into."""
    rng = np.random.default_rng(7)
    for bits, group_size in ((4, 64), (2, 32), (8, 128), (3, 32)):
        how: dict[str, Any] = {"bits": bits, "group_size": group_size, "dtype": "bf16"}
        w = quantized(rng, 9, 9 * 1024 + group_size, arithmetic=arithmetic, **how)
        for tokens in (1, 3):
            id = f"long-{bits}bit-t{tokens}-{arithmetic}"
            yield matmul_case(id, [w], _x(rng, tokens, w.shape[1]))
    w = quantized(rng, 301, 128, bits=4, group_size=64, dtype="bf16", arithmetic=arithmetic)
    for tokens in (64, 65, 150):
        yield matmul_case(f"many-tokens-{tokens}-{arithmetic}", [w], _x(rng, tokens, 128))
    w = quantized(rng, 1500, 160, bits=5, group_size=32, dtype="f16", arithmetic=arithmetic)
    yield matmul_case(f"many-rows-{arithmetic}", [w], _x(rng, 1, 160))


def value_cases(arithmetic: str) -> Iterator[Case]:
    rng = np.random.default_rng(8)
    for bits in BITS:
        how: dict[str, Any] = {"bits": bits, "group_size": 32, "dtype": "f16"}
        how["arithmetic"] = arithmetic
        for name, code in (("zeros", 0), ("ones", 2**bits - 1)):
            codes = np.full((5, 96), code)
            for tokens in (1, 3):
                w = quantized(rng, 5, 96, codes=codes, **how)
                id = f"all-{name}-{bits}bit-t{tokens}-{arithmetic}"
                yield matmul_case(id, [w], _x(rng, tokens, 96))
    # Scales below the smallest normal number, 6e-5 in float16 and 1e-38 in bfloat16 and float32.
    for dtype, scale, x_scale in (("f16", 1e-6, 1.0), ("bf16", 1e-39, 1e30), ("f32", 1e-40, 1e30)):
        for bits, tokens in itertools.product((4, 6, 8), (1, 2)):
            how = {"bits": bits, "group_size": 64, "dtype": dtype, "arithmetic": arithmetic}
            w = quantized(rng, 6, 256, scale=scale, **how)
            x = _x(rng, tokens, 256) * np.float32(x_scale)
            yield matmul_case(f"subnormal-{dtype}-{bits}bit-t{tokens}-{arithmetic}", [w], x)


def step_cases() -> Iterator[Case]:
    """Values of x that are special to rounding it, and the largest sums of integers there are."""
    rng = np.random.default_rng(12)
    for arithmetic, bits in itertools.product(ARITHMETIC_NAMES[1:], BITS):
        how: dict[str, Any] = {"bits": bits, "group_size": 128, "dtype": "f32"}
        codes = np.full((5, 384), 2**bits - 1)
        x = np.tile(np.float32([1, -1, 1e-3]), (2, 128)).reshape(2, 3, 128)
        x[0, 0] = -1  # every step at its largest, and of one sign
        x[0, 1] = 0
        x[0, 2] *= np.float32(1e-34)  # below the smallest x that is not taken for zero
        x[1, 1, 5] = 1e20  # an outlier, beside which the rest of its group becomes zero
        x[1, 2] = np.linspace(-1, 1, 128, dtype=np.float32)
        for name, given in (("largest", codes), ("random", None)):
            w = quantized(rng, 5, 384, codes=given, arithmetic=arithmetic, **how)
            yield matmul_case(f"steps-{name}-{bits}bit-{arithmetic}", [w], x.reshape(2, 384))


def many_cases() -> Iterator[Case]:
    """Matrices of different formats over one x."""
    rng = np.random.default_rng(9)
    weights = [
        quantized(rng, 33, 256, bits=4, group_size=64, dtype="bf16"),
        quantized(rng, 7, 256, bits=4, group_size=32, dtype="f16"),
        quantized(rng, 12, 256, bits=8, group_size=128, dtype="f32", bias_dtype="f32"),
        plain(rng, 5, 256, "bf16"),
        quantized(rng, 1, 256, bits=2, group_size=64, dtype="bf16"),
    ]
    mixed = [*(replace(w, arithmetic="int16") for w in weights if w.bits), *weights]
    mixed += [replace(w, arithmetic="int8") for w in weights if w.bits == 4]
    for tokens in (1, 2, 70):
        yield matmul_case(f"many-t{tokens}", weights, _x(rng, tokens, 256))
        yield matmul_case(f"many-mixed-t{tokens}", mixed, _x(rng, tokens, 256))
    yield matmul_case("no-tokens", weights[:1], _x(rng, 0, 256))


def embed_cases() -> Iterator[Case]:
    rng = np.random.default_rng(10)
    for bits in BITS:
        w = quantized(rng, 11, 192, bits=bits, group_size=64, dtype="bf16")
        yield embed_case(f"embed-{bits}bit", w, [10, 0, 3, 3])
    for dtype in DTYPES:
        yield embed_case(f"embed-{dtype}", plain(rng, 11, 33, dtype), [10, 0, 3])
    yield embed_case("embed-none", plain(rng, 2, 3, "f32"), [])


def _expert(
    rng: np.random.Generator,
    hidden_size: int,
    intermediate: int,
    formats: Sequence[tuple[int, int]],
    dtype: str,
    bias_dtype: str | None,
    arithmetic: str,
) -> list[Weight]:
    shapes = ((intermediate, hidden_size), (intermediate, hidden_size), (hidden_size, intermediate))
    how: dict[str, Any] = {"dtype": dtype, "bias_dtype": bias_dtype, "arithmetic": arithmetic}
    return [
        quantized(rng, *shape, bits=bits, group_size=group_size, **how)
        if bits
        else plain(rng, *shape, dtype, bias_dtype)
        for shape, (bits, group_size) in zip(shapes, formats, strict=True)
    ]


def expert_cases(arithmetic: str) -> Iterator[Case]:
    rng = np.random.default_rng(11)
    same = [(4, 64)] * 3
    many = [[(5 * j + i) % 16 for i in range(j % 8)] for j in range(40)]
    # id, hidden, intermediate, (bits, group size) of gate, up and down, scales, biases, tokens of
    # each expert
    table: list[tuple[str, int, int, Any, str, str | None, Any]] = [
        ("decode", 256, 128, same, "bf16", None, [[0]] * 8),
        ("one", 192, 64, same, "bf16", None, [[0]]),
        ("biases", 128, 64, same, "f16", "f16", [[0, 1], [2]]),
        ("biases-bf16", 128, 64, same, "f32", "bf16", [[1]]),
        ("group32", 96, 160, [(4, 32)] * 3, "f32", "f32", [[0, 2], [], [1]]),
        ("mixed-bits", 256, 128, [(4, 64), (6, 64), (8, 32)], "bf16", None, [[0, 1, 2], [1]]),
        ("mixed-plain", 128, 96, [(0, 0), (4, 64), (3, 32)], "bf16", None, [[0], [1, 0]]),
        ("plain-f16", 37, 29, [(0, 0)] * 3, "f16", "f32", [[0], [1, 2, 3]]),
        ("plain-f32", 33, 70, [(0, 0)] * 3, "f32", None, [[0, 1, 2, 3, 4]]),
        ("2bit", 256, 128, [(2, 128)] * 3, "f16", None, [[0, 1, 2, 3, 4, 5, 6]]),
        ("5bit", 160, 96, [(5, 32)] * 3, "bf16", None, [[3], [1, 2]]),
        ("prefill", 64, 64, [(4, 32)] * 3, "bf16", None, [range(90), range(0, 90, 2), [5]]),
        ("waves", 64, 32, [(4, 32)] * 3, "bf16", None, [range(300), range(17), range(40, 300)]),
        ("short-prompt", 64, 32, [(4, 32)] * 3, "bf16", None, many),
        ("few-of-many", 64, 32, [(8, 32)] * 3, "bf16", None, [[350, 2], [7]]),
    ]
    for id, hidden_size, intermediate, formats, dtype, bias_dtype, tokens in table:
        experts = [
            _expert(rng, hidden_size, intermediate, formats, dtype, bias_dtype, arithmetic)
            for _ in tokens
        ]
        num_tokens = max(max(t, default=0) for t in tokens) + 1
        x = _x(rng, num_tokens, hidden_size)
        yield expert_case(f"expert-{id}-{arithmetic}", experts, x, tokens)


def combine_cases() -> Iterator[Case]:
    for num_tokens, top_k, hidden_size in ((1, 8, 64), (1, 1, 1), (3, 2, 33), (5, 10, 17)):
        yield combine_case(
            f"combine-{num_tokens}x{top_k}x{hidden_size}", num_tokens, top_k, hidden_size
        )


def all_cases() -> list[Case]:
    """Every case of the matrix kernels; ids are unique."""
    by_arithmetic = (format_cases, large_cases, value_cases, expert_cases)
    return [
        *(case for cases in by_arithmetic for a in ARITHMETIC_NAMES for case in cases(a)),
        *plain_cases(),
        *step_cases(),
        *many_cases(),
        *embed_cases(),
        *combine_cases(),
    ]
