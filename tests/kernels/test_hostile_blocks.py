"""Kernels over containers that passed every check and hold nothing but hostile bytes.

A checksum says that bytes are as written, not that they are sane: scales may be NaN, infinite or
subnormal, codes any pattern. Nothing is expected of the results but that they come, under the
address and undefined-behaviour sanitizers, from blocks that end at an inaccessible page.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

import cython_kernels
from containers import write_set
from formats import KexpSet, Layout, Part, open_set
from kernels.cases import Arrays, Case, guarded, run_here
from kernels.quant_cases import PROJECTIONS
from kernels.quant_weights import BITS, DTYPES, GROUP_SIZES
from kernels.runner import Runner

NUM_EXPERTS = 3
NUM_TOKENS = 5
# Every 16-bit pattern that is no ordinary number, and bytes that make such in float32.
PATTERNS = (0xFF, 0x00, 0x7F, 0x80, 0x7C, 0xFC, 0x01)


def layout(bits: int, group_size: int, dtype: str, bias_dtype: str | None) -> Layout:
    hidden_size, intermediate_size = 2 * group_size, group_size
    parts = []
    for projection in PROJECTIONS:
        rows, cols = intermediate_size, hidden_size
        if projection == "down":
            rows, cols = cols, rows
        if bits:
            groups, how = (rows, cols // group_size), ("affine", bits, group_size)
            parts += [
                Part(projection, "weight", "u32", (rows, cols * bits // 32), *how),
                Part(projection, "scales", dtype, groups, *how),
                Part(projection, "biases", dtype, groups, *how),
            ]
        else:
            parts.append(Part(projection, "weight", dtype, (rows, cols)))
        if bias_dtype is not None:
            parts.append(Part(projection, "bias", bias_dtype, (rows,)))
    return Layout.build(parts)


LAYOUTS = [
    layout(bits, group_size, dtype, bias_dtype)
    for (bits, group_size, dtype), bias_dtype in zip(
        [*itertools.product(BITS, GROUP_SIZES, DTYPES), *((0, 33, dtype) for dtype in DTYPES)],
        itertools.cycle((None, "f32", "bf16", "f16")),
        strict=False,
    )
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KexpSet]:
    dest = tmp_path_factory.mktemp("hostile") / "model"
    layers = [(number, NUM_EXPERTS, each) for number, each in enumerate(LAYOUTS)]
    write_set(dest, layers=layers)
    with open_set(dest) as found:
        yield found


def blocks_of(opened: KexpSet, layer: int, pattern: int | None) -> np.ndarray:
    """All blocks of a layer; the last ends with its payload. `pattern`: instead of its bytes."""
    found = opened.layout(layer)
    size = found.block_bytes * (NUM_EXPERTS - 1) + found.payload_bytes
    blocks = np.zeros(size, dtype=np.uint8)
    for expert in range(NUM_EXPERTS):
        extent = opened.extent(layer, expert)
        at = extent.offset_bytes
        payload = np.frombuffer(opened.shards[extent.shard].mmap, np.uint8)[at:]
        begin = expert * found.block_bytes
        blocks[begin : begin + found.payload_bytes] = payload[: found.payload_bytes]
    if pattern is not None:
        blocks[:] = pattern
    return blocks


def params_of(found: Layout) -> dict[str, float]:
    params: dict[str, float] = {}
    for projection in PROJECTIONS:
        parts = {part.role: part for part in found.parts if part.projection == projection}
        weight = parts["weight"]
        scales = parts.get("scales", weight)
        cols = weight.shape[1] * 32 // weight.bits if weight.bits else weight.shape[1]
        numbers: dict[str, float] = {
            "out_features": weight.shape[0],
            "in_features": cols,
            "bits": weight.bits,
            "group_size": weight.group_size,
            "dtype": DTYPES.index(scales.dtype),
            "bias_dtype": DTYPES.index(parts["bias"].dtype) if "bias" in parts else 0,
            "arithmetic": 0,
            "has_bias": "bias" in parts,
        }
        for role in ("weight", "scales", "biases", "bias"):
            numbers[f"{role}_offset"] = parts[role].offset_bytes if role in parts else 0
        params |= {f"{projection}.{name}": value for name, value in numbers.items()}
    return params


def expert_case(opened: KexpSet, layer: int, pattern: int | None) -> Case:
    found, rng = opened.layout(layer), np.random.default_rng(layer)
    params = params_of(found)
    hidden_size = int(params["gate.in_features"])
    described = {
        part.key: {
            "offset_bytes": part.offset_bytes,
            "dtype": part.dtype,
            "shape": part.shape,
            "bits": part.bits,
            "group_size": part.group_size,
            "mode": part.mode,
        }
        for part in found.parts
    }
    expert_layout = cython_kernels.ExpertLayout(
        described,
        hidden_size=hidden_size,
        moe_intermediate_size=int(params["gate.out_features"]),
    )
    rows = np.tile(np.arange(NUM_TOKENS, dtype=np.int32), NUM_EXPERTS)
    x = rng.standard_normal((NUM_TOKENS, hidden_size)).astype(np.float32)
    x[0], x[1, ::3] = 0, np.float32(3e38)
    arrays: Arrays = {
        "blocks": blocks_of(opened, layer, pattern),
        "addresses": np.arange(NUM_EXPERTS, dtype=np.uint64) * np.uint64(found.block_bytes),
        "row_offsets": np.arange(NUM_EXPERTS + 1, dtype=np.int32) * np.int32(NUM_TOKENS),
        "rows": rows,
        "x": x,
        "out": np.zeros((len(rows), hidden_size), dtype=np.float32),
    }

    def run(arrays: Arrays) -> None:
        addresses = arrays["addresses"] + np.uint64(arrays["blocks"].ctypes.data)
        scratch = cython_kernels.expert_scratch(expert_layout, len(rows))
        order = ("row_offsets", "rows", "x", "out")
        cython_kernels.expert_mlp(
            expert_layout, addresses, *(arrays[name] for name in order), scratch
        )

    name = f"hostile-{layer}-{pattern}"
    return Case(name, "expert_mlp", arrays, ("out",), run, dict, params)


def matrix_cases(opened: KexpSet, layer: int, pattern: int | None) -> Iterator[Case]:
    """matmul and embed_rows over the parts of a layer's last expert, each at a guard page."""
    found = opened.layout(layer)
    begin = found.block_bytes * (NUM_EXPERTS - 1)
    block = blocks_of(opened, layer, pattern)[begin:]
    params = params_of(found)
    for projection in PROJECTIONS:
        parts = {
            f"m0.{part.role}": block[part.offset_bytes : part.offset_bytes + part.length_bytes]
            for part in found.parts
            if part.projection == projection
        }
        shape = {
            f"m0.{name}": params[f"{projection}.{name}"]
            for name in (
                *("out_features", "in_features", "bits", "group_size", "dtype", "bias_dtype"),
                "arithmetic",
            )
        }
        rows, cols = int(shape["m0.out_features"]), int(shape["m0.in_features"])
        name = f"hostile-{layer}-{pattern}-{projection}"
        for tokens in (1, NUM_TOKENS):
            arrays: Arrays = {
                **parts,
                "x": np.full((tokens, cols), np.float32(1e30)),
                "out0": np.zeros((tokens, rows), dtype=np.float32),
            }
            outputs, numbers = ("out0",), shape | {"num_matrices": 1}
            yield Case(name, "matmul", arrays, outputs, lambda _: None, dict, numbers)
        ids = np.array([rows - 1, 0], dtype=np.int32)
        arrays = {**parts, "ids": ids, "out": np.zeros((2, cols), dtype=np.float32)}
        numbers = shape | {"num_matrices": 1}
        yield Case(name, "embed_rows", arrays, ("out",), lambda _: None, dict, numbers)


@pytest.mark.parametrize("isa", cython_kernels.available_isas())
def test_under_sanitizers(isa: str, opened: KexpSet, sanitized: Runner) -> None:
    """Each layout with its random bytes, and with one of the patterns throughout."""
    patterns = itertools.cycle(PATTERNS)
    cases = []
    for layer in opened.layers:
        for pattern in (None, next(patterns)):
            cases += [
                expert_case(opened, layer, pattern),
                *matrix_cases(opened, layer, pattern),
            ]
    results = sanitized.run(cases, isa, num_threads=2)
    assert len(results) == len(cases) == 2 * len(LAYOUTS) * 10
    assert any(np.isnan(result["out"]).any() for result in results if "out" in result)


@pytest.mark.parametrize("isa", cython_kernels.available_isas())
@pytest.mark.usefixtures("use_isa")
def test_in_this_process(opened: KexpSet) -> None:
    """Through the Cython border, with blocks at a guard page."""
    for layer in opened.layers:
        run_here(expert_case(opened, layer, None), guarded)
