"""Elementwise kernels, exp, and the split of a fused projection."""

from collections.abc import Iterator

import numpy as np

import cython_kernels as ck
from cython_kernels import _kernels, reference
from kernels.cases import EPS32, Case
from kernels.vector_arguments import (
    LENGTHS,
    SIGMOID_ROUNDINGS,
    Arg,
    Array,
    magnitude,
    normal,
    slice_of,
    unset,
    vector_case,
)

# exp may be this many units in its last place off (see vector_math.inc).
EXP_UNITS = 1.1
# exp(-x) overflows below x = -88.7, where x * sigmoid(x) is smaller than this and becomes 0.
SIGMOID_UNDERFLOW = 3e-37


def elementwise_cases() -> Iterator[Case]:
    for t, width in (*((1, n) for n in LENGTHS), (3, 65), (5, 40), (2, 9000)):
        wide = np.resize(np.float32([-200, -90, -88, -20, -1e-3, 0, 1e-3, 20, 88, 90, 200]), width)
        gate = normal(width, t, width, scale=6.0)
        gate[0] = np.where(np.arange(width) % 5 == 4, wide, gate[0])
        x, y = normal(width + 1, t, width), normal(width + 2, t, width)
        for op, names, function, ref in (
            ("silu_mul", ("gate", "x", "out"), ck.silu_mul, reference.silu_mul),
            ("sigmoid_mul", ("x", "gate", "out"), ck.sigmoid_mul, reference.sigmoid_mul),
        ):
            args = {"gate": slice_of(gate), "x": Arg(x), "out": unset(t, width)}
            yield vector_case(
                f"{op}-{t}x{width}",
                op,
                args,
                ("out",),
                lambda a, names=names, function=function: function(*(a[n] for n in names)),
                lambda a, names=names, ref=ref: {
                    "out": (
                        value := ref(a[names[0]], a[names[1]]),
                        SIGMOID_ROUNDINGS * magnitude(value) + SIGMOID_UNDERFLOW * 10,
                    )
                },
            )
        yield vector_case(
            f"add-{t}x{width}",
            "add",
            {"x": slice_of(x), "y": Arg(y)},
            ("x",),
            lambda a: ck.add(a["x"], a["y"]),
            lambda a: {
                "x": (value := a["x"].astype(np.float64) + a["y"], EPS32 * magnitude(value))
            },
        )
        yield vector_case(
            f"sigmoid_scale_add-{t}x{width}",
            "sigmoid_scale_add",
            {"x": Arg(x), "gate": Arg(gate[:, :1].copy()), "out": slice_of(y)},
            ("out",),
            lambda a: ck.sigmoid_scale_add(a["x"], a["gate"], a["out"]),
            lambda a: {
                "out": (
                    reference.sigmoid_scale_add(a["x"], a["gate"], a["out"]),
                    SIGMOID_ROUNDINGS * magnitude(a["x"]) + 2 * EPS32 * magnitude(a["out"]),
                )
            },
        )


def _exp(x: Array) -> tuple[Array, Array]:
    """exp of float32 x as float32 has it, and how far a kernel may be from it."""
    with np.errstate(over="ignore"):
        value = np.exp(x.astype(np.float64))
        rounded = value.astype(np.float32)
    largest = np.finfo(np.float32).max
    finite = np.minimum(rounded, largest)
    below = np.nextafter(finite, np.float32(0)).astype(np.float64)
    unit = np.maximum(finite - below, np.finfo(np.float32).smallest_subnormal)
    return np.where(rounded > largest, np.inf, value), np.where(
        rounded > largest, 0.0, EXP_UNITS * unit
    )


def exponential_cases() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, 1.0, 88.72, 88.7228, 88.73, 89.0, 1e4, np.inf, -np.inf, -1e4, 1e-30]
    special += [-87.33, -87.34, -103.9, -103.98, -104.0, -105.0, -106.0, 0.34657359, -0.34657359]
    for name, x in (
        ("special", np.float32(special)),
        ("range", rng.uniform(-105, 88.7, 100_003).astype(np.float32)),
        ("near-zero", rng.uniform(-1, 1, 20_001).astype(np.float32)),
    ):
        yield vector_case(
            f"exponential-{name}",
            "exponential",
            {"x": Arg(x), "out": unset(*x.shape)},
            ("out",),
            lambda a: _kernels.exponential(a["x"], a["out"]),
            lambda a: {"out": _exp(a["x"])},
        )


def split_cases() -> Iterator[Case]:
    for t, heads, widths in ((1, 4, (8, 8)), (3, 2, (5, 1, 7, 7)), (5, 3, (1,)), (2, 16, (2, 2))):
        args = {"x": Arg(normal(1, t, heads, sum(widths)))}
        outs = [f"out{i}" for i in range(len(widths))]
        args |= {
            name: slice_of(np.zeros((t, heads, width), np.float32))
            for name, width in zip(outs, widths, strict=True)
        }
        ends = np.cumsum(widths)[:-1]
        yield vector_case(
            f"split-{t}x{heads}x{widths}",
            "split_interleaved",
            args,
            tuple(outs),
            lambda a, outs=outs: ck.split_interleaved(a["x"], [a[name] for name in outs]),
            lambda a, outs=outs, ends=ends: {
                name: (part, 0.0)
                for name, part in zip(outs, np.split(a["x"], ends, axis=-1), strict=True)
            },
            num_outs=len(widths),
        )
