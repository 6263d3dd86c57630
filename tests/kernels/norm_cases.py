"""Norms, of rows and of heads."""

import itertools
from collections.abc import Iterator

import numpy as np

import cython_kernels as ck
from cython_kernels import reference
from kernels.cases import EPS32, Arrays, Case
from kernels.vector_arguments import (
    LENGTHS,
    NORM_ROUNDINGS,
    SIGMOID_ROUNDINGS,
    Arg,
    Results,
    magnitude,
    normal,
    slice_of,
    unset,
    vector_case,
)


def norm_cases() -> Iterator[Case]:
    eps = 1e-6
    tokens = itertools.cycle((1, 2, 3, 5, 17))
    for width in (*LENGTHS, 2048, 16384):
        t = next(tokens) if width < 2000 else 1
        x = normal(width, t, width) + np.float32(0.1)
        weight = normal(width + 1, width)
        for arg, out, w in (
            (Arg(x), unset(t, width), weight),
            (slice_of(x), slice_of(np.zeros_like(x)), None),
        ):
            args = {"x": arg, "out": out} | ({} if w is None else {"weight": Arg(w)})

            def results(a: Arrays) -> Results:
                value = reference.rms_norm(a["x"], a.get("weight"), eps)
                return {"out": (value, NORM_ROUNDINGS * magnitude(value))}

            yield vector_case(
                f"rms_norm-{t}x{width}-{'plain' if w is None else 'weight'}",
                "rms_norm",
                args,
                ("out",),
                lambda a: ck.rms_norm(a["x"], a.get("weight"), eps, a["out"]),
                results,
                eps=eps,
            )
    # Squares of these leave float32 or vanish in it; the mean must not.
    for name, scale in (("small", 1e-15), ("large", 1e15), ("zero", 0.0)):
        args = {"x": Arg(normal(5, 2, 70, scale=scale)), "out": unset(2, 70)}
        args["weight"] = Arg(normal(6, 70))
        yield vector_case(
            f"rms_norm-{name}",
            "rms_norm",
            args,
            ("out",),
            lambda a: ck.rms_norm(a["x"], a["weight"], 1e-6, a["out"]),
            lambda a: {
                "out": (
                    value := reference.rms_norm(a["x"], a["weight"], 1e-6),
                    NORM_ROUNDINGS * magnitude(value),
                )
            },
            eps=eps,
        )


def add_rms_norm_cases() -> Iterator[Case]:
    eps = 1e-5
    for t, width in ((1, 1), (1, 64), (3, 65), (5, 300), (2, 4100)):
        args = {
            "x": Arg(normal(1, t, width)),
            "delta": slice_of(normal(2, t, width)),
            "weight": Arg(normal(3, width)),
            "out": unset(t, width),
        }

        def results(a: Arrays) -> Results:
            total = a["x"].astype(np.float64) + a["delta"]
            value = reference.rms_norm(total, a["weight"], eps)
            # The sum rounds once before its norm is taken.
            return {
                "x": (total, EPS32 * magnitude(total)),
                "out": (value, (NORM_ROUNDINGS + EPS32) * magnitude(value)),
            }

        yield vector_case(
            f"add_rms_norm-{t}x{width}",
            "add_rms_norm",
            args,
            ("x", "out"),
            lambda a: ck.add_rms_norm(a["x"], a["delta"], a["weight"], eps, a["out"]),
            results,
            eps=eps,
        )


def gated_norm_cases() -> Iterator[Case]:
    eps = 1e-6
    for t, heads, dim in ((1, 1, 1), (1, 4, 128), (3, 5, 33), (2, 3, 64), (5, 2, 7)):
        x, gate = normal(1, t, heads, dim), normal(2, t, heads, dim, scale=4.0)
        args = {
            "x": Arg(x),
            "gate": slice_of(gate, before=dim),
            "weight": Arg(normal(3, dim)),
            "out": unset(t, heads, dim),
        }
        yield vector_case(
            f"rms_norm_gated-{t}x{heads}x{dim}",
            "rms_norm_gated",
            args,
            ("out",),
            lambda a: ck.rms_norm_gated(a["x"], a["gate"], a["weight"], eps, a["out"]),
            lambda a: {
                "out": (
                    value := reference.rms_norm_gated(a["x"], a["gate"], a["weight"], eps),
                    (NORM_ROUNDINGS + SIGMOID_ROUNDINGS) * magnitude(value),
                )
            },
            eps=eps,
        )
        # In place, on a slice: one head's part of a fused projection.
        for op, call, ref in (
            (
                "head_rms_norm",
                lambda a: ck.head_rms_norm(a["x"], a["weight"], eps),
                lambda a: reference.rms_norm(a["x"], a["weight"], eps),
            ),
            (
                "l2_normalize",
                lambda a: ck.l2_normalize_heads(a["x"], eps, 0.25),
                lambda a: reference.l2_normalize_heads(a["x"], eps, 0.25),
            ),
        ):
            in_place = {"x": slice_of(x, after=dim)}
            if op == "head_rms_norm":
                in_place["weight"] = args["weight"]
            yield vector_case(
                f"{op}-{t}x{heads}x{dim}",
                op,
                in_place,
                ("x",),
                call,
                lambda a, ref=ref: {"x": (value := ref(a), NORM_ROUNDINGS * magnitude(value))},
                eps=eps,
                scale=0.25,
            )
