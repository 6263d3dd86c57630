"""Rope, the KV cache and attention."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

import cython_kernels as ck
from cython_kernels import reference
from kernels.cases import EPS32, Arrays, Case
from kernels.vector_arguments import (
    Arg,
    Array,
    Results,
    magnitude,
    normal,
    slice_of,
    unset,
    vector_case,
)

# Products, a sum of two, and the last bits of libm's sine and cosine.
ROPE_ROUNDINGS = 4 * EPS32
# A score is a dot product summed in lanes, its error relative to the product of the two norms.
SCORE_ROUNDINGS = EPS32
# Online softmax: exp, rescaling once a block of keys, the weighted sum, the division. The worst
# seen, with the scores' share, is a third of what is allowed.
SOFTMAX_ROUNDINGS = 6 * EPS32


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
            norms = reference.rope(magnitude(a["x"]), np.zeros(pairs), 0)[..., : 2 * pairs]
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
    sizes = reference.attention(a["q"], a["keys"], magnitude(a["values"]), kv_len, scale)
    group = a["q"].shape[1] // a["keys"].shape[0]
    longest = np.sqrt(np.max(np.sum(magnitude(a["keys"][:, :kv_len]) ** 2, axis=-1), axis=-1))
    scores = np.sqrt(np.sum(magnitude(a["q"]) ** 2, axis=-1)) * np.repeat(longest, group) * scale
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
