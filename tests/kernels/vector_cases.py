"""Cases of the vector kernels: sizes around vector widths, strided slices, values that bite."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import cython_kernels as ck
from cython_kernels import _kernels, reference
from kernels.cases import EPS32, Arrays, Case, Expected

Array = NDArray[Any]
Pick = Callable[[Array], Array]

# The factor of a norm is a sum of squares, of which at most 64 are added one after another in one
# lane, then a root and a division: the worst seen is 3 roundings, the products around it add 3.
NORM_ROUNDINGS = 8 * EPS32
# exp may be this many units in its last place off (see vector_math.inc).
EXP_UNITS = 1.1
# exp, then an addition and a division.
SIGMOID_ROUNDINGS = 6 * EPS32
# exp(-x) overflows below x = -88.7, where x * sigmoid(x) is smaller than this and becomes 0.
SIGMOID_UNDERFLOW = 3e-37
# Products, a sum of two, and the last bits of libm's sine and cosine.
ROPE_ROUNDINGS = 4 * EPS32
# A score is a dot product summed in lanes, its error relative to the product of the two norms.
SCORE_ROUNDINGS = EPS32
# Online softmax: exp, rescaling once a block of keys, the weighted sum, the division. The worst
# seen, with the scores' share, is a third of what is allowed.
SOFTMAX_ROUNDINGS = 6 * EPS32
# Each token rounds the state, both its products and the step, relative to the largest number
# around; errors of random sign add up slowly. The worst seen is a third.
DELTA_ROUNDINGS = EPS32

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 80, 127, 128, 257, 1000)


@dataclass(frozen=True)
class Arg:
    """An argument: the array the test places, and the slice of it that the kernel is given."""

    base: Array
    pick: Pick = lambda base: base

    @property
    def view(self) -> Array:
        return self.pick(self.base)

    def params(self, name: str) -> dict[str, float]:
        """Shape, strides and start of the view in elements, as runner_vector.c reads them."""
        view, item = self.view, self.base.itemsize
        start = view.ctypes.data - self.base.ctypes.data
        shape, strides = list(view.shape), [stride // item for stride in view.strides]
        if view.ndim == 1:
            shape, strides = [1, 1, *shape], [0, 0, 1]
        elif view.ndim == 2:
            shape, strides = [shape[0], 1, shape[1]], [strides[0], 0, 1]
        names = ("n0", "n1", "width", "stride0", "stride1", "start")
        values = (*shape, strides[0], strides[1], start // item)
        return {f"{name}.{key}": value for key, value in zip(names, values, strict=True)}


Results = Mapping[str, tuple[ArrayLike, ArrayLike]]


def vector_case(
    id: str,
    op: str,
    args: Mapping[str, Arg],
    outputs: tuple[str, ...],
    call: Callable[[Arrays], None],
    results: Callable[[Arrays], Results],
    **params: float,
) -> Case:
    """A case of named arguments; `results` gives each output view and what it may be off by."""

    def views(arrays: Arrays) -> Arrays:
        return {name: arg.pick(arrays[name]) for name, arg in args.items()}

    @functools.cache
    def expected() -> dict[str, Expected]:
        found = {}
        for name, (value, allowed) in results({n: a.view for n, a in args.items()}).items():
            whole = args[name].base.astype(np.float64)
            tolerance = np.zeros(whole.shape)
            args[name].pick(whole)[...] = value
            args[name].pick(tolerance)[...] = allowed
            found[name] = Expected(whole, tolerance)
        return found

    numbers = dict(params)
    for name, arg in args.items():
        numbers |= arg.params(name)
    return Case(
        id,
        op,
        {name: arg.base for name, arg in args.items()},
        outputs,
        lambda arrays: call(views(arrays)),
        expected,
        numbers,
    )


def normal(seed: int, *shape: int, scale: float = 1.0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32)


def unset(*shape: int) -> Arg:
    """An output that holds NaN until it is written."""
    return Arg(np.full(shape, np.nan, dtype=np.float32))


def slice_of(array: Array, before: int = 3, after: int = 2) -> Arg:
    """The same values inside a wider last axis, as one part of a fused projection has them."""
    widths = [(0, 0)] * (array.ndim - 1) + [(before, after)]
    base = np.pad(array, widths, constant_values=12345)
    return Arg(base, lambda b: b[..., before : b.shape[-1] - after])


def _abs(x: ArrayLike) -> Array:
    return np.abs(np.asarray(x, dtype=np.float64))


# Norms and elementwise.


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
                return {"out": (value, NORM_ROUNDINGS * _abs(value))}

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
                    NORM_ROUNDINGS * _abs(value),
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
                "x": (total, EPS32 * _abs(total)),
                "out": (value, (NORM_ROUNDINGS + EPS32) * _abs(value)),
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
                    (NORM_ROUNDINGS + SIGMOID_ROUNDINGS) * _abs(value),
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
                lambda a, ref=ref: {"x": (value := ref(a), NORM_ROUNDINGS * _abs(value))},
                eps=eps,
                scale=0.25,
            )


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
                        SIGMOID_ROUNDINGS * _abs(value) + SIGMOID_UNDERFLOW * 10,
                    )
                },
            )
        yield vector_case(
            f"add-{t}x{width}",
            "add",
            {"x": slice_of(x), "y": Arg(y)},
            ("x",),
            lambda a: ck.add(a["x"], a["y"]),
            lambda a: {"x": (value := a["x"].astype(np.float64) + a["y"], EPS32 * _abs(value))},
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
                    SIGMOID_ROUNDINGS * _abs(a["x"]) + 2 * EPS32 * _abs(a["out"]),
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


# Attention.


def rope_cases() -> Iterator[Case]:
    table = (
        (1, 1, 2, 1, 0, 1.0),
        (1, 4, 64, 32, 1000, 1.0),
        (3, 2, 80, 40, 7, 1.0),
        (5, 3, 256, 32, 100_000, 1.0),
        (17, 2, 40, 9, 3, 0.25),
        (2, 1, 7, 3, 262_143, 1.0),
        (300, 4, 64, 16, 5, 1.0),
    )
    for (t, heads, dim, pairs, offset, scale), traditional in itertools.product(
        table, (False, True)
    ):
        inv_freq = (10000.0 ** (-np.arange(pairs) / pairs)).astype(np.float32)
        x = normal(dim, t, heads, dim)

        def results(
            a: Arrays, offset: int = offset, traditional: bool = traditional, scale: float = scale
        ) -> Results:
            value = reference.rope(
                a["x"], a["inv_freq"], offset, traditional=traditional, scale=scale
            )
            pairs = a["inv_freq"].size
            allowed = np.zeros_like(value)
            # Neither element of a pair is larger than their hypotenuse.
            norms = reference.rope(_abs(a["x"]), np.zeros(pairs), 0)[..., : 2 * pairs]
            first, second = (
                (norms[..., 0::2], norms[..., 1::2])
                if traditional
                else (norms[..., :pairs], norms[..., pairs:])
            )
            bound = ROPE_ROUNDINGS * (first + second)
            allowed[..., : 2 * pairs] = (
                np.repeat(bound, 2, axis=-1) if traditional else np.tile(bound, 2)
            )
            return {"x": (value, allowed)}

        yield vector_case(
            f"rope-{t}x{heads}x{dim}-{2 * pairs}{'-traditional' * traditional}",
            "rope",
            {"x": slice_of(x, after=dim), "inv_freq": Arg(inv_freq)},
            ("x",),
            lambda a, o=offset, s=scale, tr=traditional: ck.rope(
                a["x"], a["inv_freq"], o, traditional=tr, scale=s
            ),
            results,
            offset=offset,
            scale=scale,
            traditional=traditional,
        )


def cache_of(seed: int, heads: int, capacity: int, dim: int, kv_len: int, dtype: Any) -> Array:
    """Random cache whose rows past kv_len are NaN, as memory never written may be."""
    cache = normal(seed, heads, capacity, dim).astype(dtype)
    cache[:, kv_len:] = np.nan
    return cache


def _attention_bound(a: Arrays, kv_len: int, scale: float) -> Array:
    """How far float32 attention may be from the truth: rounded scores move the weights, and the
    weighted sum rounds like a dot product."""
    sizes = reference.attention(a["q"], a["keys"], _abs(a["values"]), kv_len, scale)
    group = a["q"].shape[1] // a["keys"].shape[0]
    longest = np.sqrt(np.max(np.sum(_abs(a["keys"][:, :kv_len]) ** 2, axis=-1), axis=-1))
    scores = np.sqrt(np.sum(_abs(a["q"]) ** 2, axis=-1)) * np.repeat(longest, group) * scale
    return sizes * (SOFTMAX_ROUNDINGS + SCORE_ROUNDINGS * scores[..., None])


def attention_case(
    id: str, q: Arg, keys: Arg, values: Arg, kv_len: int, scale: float, out: Arg
) -> Case:
    return vector_case(
        id,
        "attention",
        {"q": q, "keys": keys, "values": values, "out": out},
        ("out",),
        lambda a: ck.attention(a["q"], a["keys"], a["values"], kv_len, scale, a["out"]),
        lambda a: {
            "out": (
                reference.attention(a["q"], a["keys"], a["values"], kv_len, scale),
                _attention_bound(a, kv_len, scale),
            )
        },
        kv_len=kv_len,
        scale=scale,
        half=keys.base.dtype == np.float16,
    )


def attention_cases() -> Iterator[Case]:
    dims = itertools.cycle((64, 1, 80, 7, 128, 256, 96, 33))
    heads = itertools.cycle(((1, 1), (6, 2), (4, 4), (9, 3), (16, 2), (5, 1)))
    dtypes = itertools.cycle((np.float16, np.float32, np.float16))
    for t, history in itertools.product((1, 2, 3, 5, 17), (0, 1, 62, 63, 64, 65, 190)):
        dim, (num_heads, kv_heads), dtype = next(dims), next(heads), next(dtypes)
        kv_len = history + t
        capacity = kv_len + (0 if history % 2 else 5)
        q = normal(kv_len, t, num_heads, dim)
        keys, values = (cache_of(s, kv_heads, capacity, dim, kv_len, dtype) for s in (1, 2))
        yield attention_case(
            f"attention-t{t}-kv{kv_len}-{num_heads}/{kv_heads}x{dim}-{np.dtype(dtype)}",
            slice_of(q, after=dim) if history % 3 else Arg(q),
            Arg(keys),
            Arg(values),
            kv_len,
            dim**-0.5,
            unset(t, num_heads, dim),
        )
    # Long enough for key ranges of their own, which are merged afterwards.
    for t, kv_len, num_heads, kv_heads, dim in (
        (1, 1024, 4, 2, 64),
        (1, 2100, 3, 1, 80),
        (5, 1500, 8, 2, 33),
        (17, 1100, 4, 1, 16),
    ):
        q = normal(1, t, num_heads, dim)
        keys, values = (normal(s, kv_heads, kv_len, dim).astype(np.float16) for s in (2, 3))
        id = f"attention-long-t{t}-kv{kv_len}"
        out = unset(t, num_heads, dim)
        yield attention_case(id, Arg(q), Arg(keys), Arg(values), kv_len, dim**-0.5, out)
    # Scores of hundreds: their exponentials overflow unless the maximum is taken off first.
    q = normal(1, 2, 2, 32, scale=30.0)
    keys, values = (normal(s, 1, 300, 32) for s in (2, 3))
    out = unset(2, 2, 32)
    yield attention_case("attention-peaked", Arg(q), Arg(keys), Arg(values), 300, 1.0, out)
    # Rows of keys that are slices of wider ones, as in a cache that holds keys and values together.
    fused = normal(1, 2, 70, 100)
    keys, values = Arg(fused, lambda b: b[..., :50]), Arg(fused.copy(), lambda b: b[..., 50:])
    out = slice_of(np.zeros((3, 4, 50), np.float32))
    yield attention_case("attention-fused", Arg(normal(2, 3, 4, 50)), keys, values, 68, 0.1, out)


APPEND_NAMES = ("keys_new", "values_new", "keys", "values")


def append_cases() -> Iterator[Case]:
    for (t, heads, dim, offset), dtype in itertools.product(
        ((1, 1, 1, 0), (1, 3, 80, 4), (5, 2, 17, 3), (300, 2, 64, 1)), (np.float16, np.float32)
    ):
        keys_new = normal(1, t, heads, dim, scale=3.0)
        # Half precision: subnormal, halfway between two neighbours, overflow.
        special = np.float32([1e-7, 6e-8, 2e-8, 1.00048828125, 65519.0, 65520.0, -1e9])
        keys_new.reshape(-1)[: special.size] = special[: keys_new.size]
        values_new = normal(2, t, heads, dim)
        capacity = offset + t + 2
        caches = {
            name: Arg(normal(seed, heads, capacity, dim).astype(dtype))
            for name, seed in (("keys", 3), ("values", 4))
        }

        def results(a: Arrays, offset: int = offset, t: int = t) -> Results:
            found = {}
            for name in ("keys", "values"):
                cache = a[name].copy()
                with np.errstate(over="ignore"):
                    new = a[f"{name}_new"].astype(cache.dtype)
                cache[:, offset : offset + t] = new.transpose(1, 0, 2)
                found[name] = (cache, 0.0)
            return found

        yield vector_case(
            f"kv_append-{t}x{heads}x{dim}-{np.dtype(dtype)}",
            "kv_append",
            {"keys_new": slice_of(keys_new), "values_new": Arg(values_new), **caches},
            ("keys", "values"),
            lambda a, offset=offset: ck.kv_append(*(a[name] for name in APPEND_NAMES), offset),
            results,
            offset=offset,
            half=dtype is np.float16,
        )


# Gated delta rule.


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
            inputs = np.concatenate([_abs(a["state"]), _abs(a["x"])])
            taps = a["weight"].shape[0]
            sizes = sum(
                _abs(tap) * inputs[i : i + out.shape[0]] for i, tap in enumerate(a["weight"])
            )
            # |silu'| < 1.1
            allowed = 1.1 * (taps + 1) * EPS32 * sizes + SIGMOID_ROUNDINGS * _abs(out)
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
            size = rate * (_abs(arrays["a"]) + _abs(arrays["dt_bias"]) + 1)
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
            largest = max(_abs(a["state"]).max(), _abs(a["v"]).max(), _abs(state).max())
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
        largest = max(_abs(a["state"]).max(), _abs(conv_state).max(), _abs(state).max())
        allowed = DELTA_ROUNDINGS * (4 + t) * largest
        # The norm divides by the size of the row, and the error before it with that.
        size = np.sqrt(np.mean(mixed * mixed, axis=-1, keepdims=True) + norm_eps)
        gain = _abs(norm) * _abs(reference.silu(gate)) / size
        rest = (NORM_ROUNDINGS + SIGMOID_ROUNDINGS) * _abs(out)
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


# Routing.

MODES = ("softmax_then_topk", "softmax_then_topk_normalized", "topk_then_softmax")


def routing_case(id: str, logits: Array, top_k: int, mode: str) -> Case:
    t = logits.shape[0]
    args = {
        "logits": slice_of(logits),
        "indices": Arg(np.full((t, top_k), -1, dtype=np.int32)),
        "scores": unset(t, top_k),
    }

    def results(a: Arrays) -> Results:
        indices, scores = reference.top_k_routing(a["logits"], top_k, mode)
        # exp of a difference of logits, which rounds once itself; underflow to zero.
        spread = np.ptp(a["logits"].astype(np.float64)) + 8
        return {"indices": (indices, 0.0), "scores": (scores, spread * EPS32 * scores + 1e-44)}

    return vector_case(
        id,
        "top_k_routing",
        args,
        ("indices", "scores"),
        lambda a: ck.top_k_routing(a["logits"], top_k, mode, a["indices"], a["scores"]),
        results,
        top_k=top_k,
        all_scores=mode == "softmax_then_topk",
    )


def routing_cases() -> Iterator[Case]:
    modes = itertools.cycle(MODES)
    for num_experts, top_k in (
        *((e, k) for e in (1, 2, 7, 8, 16, 17, 60, 64, 128, 513) for k in (1, 2, e // 2, e)),
        (512, 10),
        (16384, 8),
        (16384, 16384),
    ):
        if not 1 <= top_k <= num_experts:
            continue
        t = 3 if num_experts < 1000 else 1
        mode = next(modes)
        logits = normal(num_experts + top_k, t, num_experts, scale=2.0)
        yield routing_case(f"routing-{num_experts}-{top_k}-{mode}", logits, top_k, mode)
    rng = np.random.default_rng(1)
    ties = rng.integers(-2, 3, (5, 100)).astype(np.float32)
    ordered = np.arange(100, dtype=np.float32)[None] / 8
    for name, logits in (
        ("ties", ties),
        ("equal", np.zeros((2, 100), np.float32)),
        ("ascending", ordered),
        ("descending", -ordered),
        ("zeros", np.where(ties > 0, np.float32(0.0), np.float32(-0.0))),
        ("spread", ordered * 100),
    ):
        for top_k, mode in itertools.product((1, 10, 99, 100), MODES):
            yield routing_case(f"routing-{name}-{top_k}-{mode}", logits, top_k, mode)
    # Lanes past the end of a row must not pass for the zeros they are filled with.
    yield routing_case("routing-negative", normal(1, 2, 21) - np.float32(50), 3, MODES[0])


def all_cases() -> list[Case]:
    """Every case of the vector kernels; ids are unique."""
    return [
        *norm_cases(),
        *add_rms_norm_cases(),
        *gated_norm_cases(),
        *elementwise_cases(),
        *exponential_cases(),
        *split_cases(),
        *rope_cases(),
        *attention_cases(),
        *append_cases(),
        *conv_cases(),
        *gates_cases(),
        *delta_cases(),
        *heads_cases(),
        *routing_cases(),
    ]
