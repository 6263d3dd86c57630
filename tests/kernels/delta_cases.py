"""The gated delta rule: its convolution, its gates, the rule itself, and a whole layer."""

import itertools
from collections.abc import Iterator

import numpy as np

import cython_kernels as ck
from cython_kernels import reference
from kernels.cases import EPS32, Arrays, Case
from kernels.vector_arguments import (
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

# Each token rounds the state, both its products and the step, relative to the largest number
# around; errors of random sign add up slowly. The worst seen is a third.
DELTA_ROUNDINGS = EPS32


def conv_cases() -> Iterator[Case]:
    tokens = itertools.cycle((1, 2, 3, 5, 17))
    for channels, taps in itertools.product((1, 7, 16, 33, 64, 700), (1, 2, 4, 5)):
        t = next(tokens)
        args = {
            "x": slice_of(normal(1, t, channels)),
            "weight": Arg(normal(2, taps, channels)),
            "state": Arg(normal(3, taps - 1, channels)),
            "out": unset(t, channels),
        }

        def results(a: Arrays) -> Results:
            out, state = reference.causal_conv(a["x"], a["weight"], a["state"])
            inputs = np.concatenate([magnitude(a["state"]), magnitude(a["x"])])
            taps = a["weight"].shape[0]
            sizes = sum(
                magnitude(tap) * inputs[i : i + out.shape[0]] for i, tap in enumerate(a["weight"])
            )
            # |silu'| < 1.1
            allowed = 1.1 * (taps + 1) * EPS32 * sizes + SIGMOID_ROUNDINGS * magnitude(out)
            return {"out": (out, allowed), "state": (state, 0.0)}

        yield vector_case(
            f"causal_conv-{t}x{channels}-taps{taps}",
            "causal_conv",
            args,
            ("state", "out"),
            lambda a: ck.causal_conv(a["x"], a["weight"], a["state"], a["out"]),
            results,
        )


def gates_cases() -> Iterator[Case]:
    names = ("a", "b", "a_log", "dt_bias", "g", "beta")
    for t, heads in ((1, 1), (1, 32), (3, 7), (17, 48)):
        a = normal(1, t, heads, scale=5.0)
        a.reshape(-1)[:3] = np.float32([-120.0, 120.0, 0.0])[: a.size]
        args = {
            "a": slice_of(a),
            "b": slice_of(normal(2, t, heads, scale=3.0)),
            "a_log": Arg(np.log(np.random.default_rng(3).uniform(0.01, 16, heads)).astype("f4")),
            "dt_bias": Arg(normal(4, heads)),
            "g": unset(t, heads),
            "beta": unset(t, heads),
        }

        def results(arrays: Arrays) -> Results:
            g, beta = reference.gated_delta_gates(*(arrays[name] for name in names[:4]))
            # exp of -s moves by s relative to an error of s: 8 roundings of s = -log g, which the
            # cancellation in a + dt_bias can make a few more.
            rate = np.exp(arrays["a_log"].astype(np.float64))
            size = rate * (magnitude(arrays["a"]) + magnitude(arrays["dt_bias"]) + 1)
            allowed = g * (4 + 8 * size) * EPS32 + 1e-45
            return {"g": (g, allowed), "beta": (beta, SIGMOID_ROUNDINGS * beta)}

        yield vector_case(
            f"gates-{t}x{heads}",
            "gated_delta_gates",
            args,
            ("g", "beta"),
            lambda a: ck.gated_delta_gates(*(a[name] for name in names)),
            results,
        )


def delta_cases() -> Iterator[Case]:
    names = ("q", "k", "v", "g", "beta", "state", "out")
    for t, key_heads, heads, key_dim, value_dim in (
        (1, 1, 1, 1, 1),
        (1, 2, 4, 128, 128),
        (1, 1, 3, 33, 70),
        (2, 2, 2, 64, 7),
        (3, 1, 4, 7, 5),
        (5, 4, 4, 20, 37),
        (17, 2, 6, 96, 64),
        (64, 1, 2, 128, 33),
    ):
        rng = np.random.default_rng(key_dim)
        unit = reference.l2_normalize_heads(normal(1, 2, t, key_heads, key_dim), 1e-6, 1.0)
        q, k = unit.astype(np.float32)
        args = {
            "q": slice_of(q * np.float32(key_dim**-0.5)),
            "k": slice_of(k, before=0),
            "v": slice_of(normal(2, t, heads, value_dim)),
            "g": slice_of(rng.uniform(0.5, 1, (t, heads)).astype(np.float32)),
            "beta": Arg(rng.uniform(0, 1, (t, heads)).astype(np.float32)),
            "state": Arg(normal(3, heads, value_dim, key_dim)),
            "out": unset(t, heads, value_dim),
        }

        def results(a: Arrays, t: int = t) -> Results:
            out, state = reference.gated_delta(*(a[name] for name in names[:6]))
            largest = max(magnitude(x).max() for x in (a["state"], a["v"], state))
            allowed = DELTA_ROUNDINGS * (4 + t) * largest
            # |q| is key_dim^-0.5, so out is no larger than a row of the state over its length.
            return {"out": (out, allowed), "state": (state, allowed)}

        yield vector_case(
            f"gated_delta-t{t}-{heads}/{key_heads}-{value_dim}x{key_dim}",
            "gated_delta",
            args,
            ("state", "out"),
            lambda a: ck.gated_delta(*(a[name] for name in names)),
            results,
        )


def heads_case(
    id: str, t: int, key_heads: int, heads: int, key_dim: int, value_dim: int, decay: float = 1.0
) -> Case:
    """A gated delta layer between its projections; a larger `decay` makes it forget faster."""
    channels = 2 * key_heads * key_dim + heads * value_dim
    rng = np.random.default_rng(key_dim)
    inputs = ("qkv", "a", "b", "conv_state", "state")
    weights = ("conv_weight", "a_log", "dt_bias", "norm_weight")
    args = {
        "qkv": slice_of(normal(1, t, channels)),
        "z": slice_of(normal(2, t, heads * value_dim), before=0),
        "a": slice_of(normal(3, t, heads)),
        "b": slice_of(normal(4, t, heads), after=0),
        "out": slice_of(np.full((t, heads * value_dim), np.nan, np.float32), before=5),
        "conv_weight": Arg(normal(5, 4 if t != 5 else 2, channels, scale=0.5)),
        "a_log": Arg(np.log(decay * rng.uniform(0.01, 16, heads)).astype(np.float32)),
        "dt_bias": Arg(normal(6, heads)),
        "norm_weight": Arg(normal(7, value_dim)),
        "conv_state": Arg(normal(8, 3 if t != 5 else 1, channels)),
        "state": Arg(normal(9, heads, value_dim, key_dim)),
    }
    fixed = {"num_key_heads": key_heads, "normalize_eps": 1e-6}
    norm_eps = 1e-6

    def results(a: Arrays) -> Results:
        mixed, conv_state, state = reference.gated_delta_mix(
            *(a[name] for name in inputs),
            **{name: a[name] for name in weights[:3]},
            value_dim=value_dim,
            **fixed,
        )
        gate, norm = a["z"].reshape(mixed.shape), a["norm_weight"]
        out = reference.rms_norm_gated(mixed, gate, norm, norm_eps)
        largest = max(magnitude(x).max() for x in (a["state"], conv_state, state))
        allowed = DELTA_ROUNDINGS * (4 + t) * largest
        # The norm divides by the size of the row, and the error before it with that.
        size = np.sqrt(np.mean(mixed * mixed, axis=-1, keepdims=True) + norm_eps)
        gain = magnitude(norm) * magnitude(reference.silu(gate)) / size
        rest = (NORM_ROUNDINGS + SIGMOID_ROUNDINGS) * magnitude(out)
        return {
            "out": (out.reshape(t, -1), (allowed * gain + rest).reshape(t, -1)),
            "conv_state": (conv_state, 0.0),
            "state": (state, allowed),
        }

    def call(a: Arrays) -> None:
        mix = ck.GatedDeltaHeads(
            *(a[name] for name in ("qkv", "z", "a", "b", "out")),
            **{name: a[name] for name in weights},
            norm_eps=norm_eps,
            **fixed,
        )
        mix(t, a["conv_state"], a["state"])

    return vector_case(
        id,
        "gated_delta_heads",
        args,
        ("conv_state", "state", "out"),
        call,
        results,
        norm_eps=norm_eps,
        **fixed,
    )


def heads_cases() -> Iterator[Case]:
    for t, key_heads, heads, key_dim, value_dim in (
        (1, 2, 4, 128, 128),
        (1, 1, 3, 33, 70),
        (5, 4, 4, 20, 37),
        (23, 1, 2, 16, 48),
        (24, 2, 6, 96, 64),
        (32, 1, 2, 128, 128),
        (33, 2, 2, 7, 5),
        (45, 1, 2, 128, 33),
        (100, 2, 2, 40, 72),
    ):
        sizes = f"{heads}/{key_heads}-{value_dim}x{key_dim}"
        yield heads_case(f"gated_delta_heads-t{t}-{sizes}", t, key_heads, heads, key_dim, value_dim)
    yield heads_case("gated_delta_heads-forgets", 70, 1, 2, 64, 64, decay=100.0)
    yield heads_case("gated_delta_heads-remembers", 70, 1, 2, 64, 64, decay=1e-4)
