"""Cases of the compressed KV cache: coding, and attention on blocks the reference has packed."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cython_kernels as ck
from cython_kernels.reference import turboquant as tq
from kernels.cases import EPS32, Arrays, Case, Expected

Array = NDArray[Any]
BLOCK = tq.BLOCK_TOKENS

# (head_dim, KV heads, query heads a KV head): sizes of models, and what no vector divides.
SHAPES = ((64, 3, 3), (80, 1, 5), (128, 2, 4), (256, 2, 8), (20, 2, 1), (1, 1, 2), (192, 1, 16))
# (key bits, value bits, qjl)
CODES = ((4, 3, False), (3, 3, False), (2, 4, False), (8, 2, False), (3, 8, True), (4, 3, True))

# A code this near a border may go either way in float32; its token is not compared.
NEAR_BORDER = 1e-4
# Rotation, scale and product in float32, relative to the row's largest coordinate.
DECODE_ROUNDINGS = 64 * EPS32
# Whole weights of 14 bits: half a unit of the largest, once a token.
WEIGHT_STEP = 0.5 / 16383
# Rotation back, softmax, sums of some hundred products in float32, relative to the largest value.
ATTENTION_ROUNDINGS = 200 * EPS32
# The projected query is rounded from float32, so a step may differ: of the residual's part only.
PROJECTION_STEP = 2e-3


def halves(seed: int, *shape: int, mean: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    head_means = mean * rng.standard_normal((shape[0], 1, shape[2]))
    return (rng.standard_normal(shape) + head_means).astype(np.float16)


def _is_sure(rows: Array, bits: int, coding: tq.Coding, qjl: bool) -> NDArray[np.bool_]:
    """Which tokens have no coordinate near a border between two codes."""
    mean = rows.mean(axis=0).astype(np.float16) if coding == "keys" else np.zeros(rows.shape[1])
    signs = tq.rotation_signs(tq.KEY_SEED if coding == "keys" else tq.VALUE_SEED, rows.shape[1])
    y = tq.rotate(rows - mean.astype(np.float64), signs)
    bits -= qjl
    if bits == 8:
        z = y * (127 / np.maximum(np.abs(y).max(axis=1, keepdims=True), 1e-9))
        return (np.abs(z - np.floor(z) - 0.5) > NEAR_BORDER * 10).all(axis=1)
    z = y / np.maximum(np.sqrt(np.mean(y * y, axis=1, keepdims=True)), 1e-9)
    centroids = tq.lloyd_max(bits)
    borders = (centroids[1:] + centroids[:-1]) / 2
    sure = (np.abs(z[..., None] - borders) > NEAR_BORDER).all(axis=(1, 2))
    if qjl:
        coded = tq.encode(rows, bits + 1, coding, qjl=True)
        rest = tq.rotate(
            y - coded.first_stage(), tq.rotation_signs(tq.RESIDUAL_SEED, rows.shape[1])
        )
        sure &= (np.abs(rest) > NEAR_BORDER).all(axis=1)
    return sure


def _is_shaped_surely(rows: Array, bits: int, energies: Array) -> NDArray[np.bool_]:
    """Which tokens float32 must code alike: their codes stay as they are when rows or energies
    move by far more than its rounding.
    """
    wanted = tq.encode(rows, bits, "keys", energies=energies).codes
    sure, center = np.ones(len(rows), bool), rows.mean(axis=0)
    wave = NEAR_BORDER * np.sin(np.arange(rows.size)).reshape(rows.shape)
    for change in (wave, -wave):
        moved = center + (rows - center) * (1 + change)
        sure &= (tq.encode(moved, bits, "keys", energies=energies).codes == wanted).all(axis=1)
    return sure


def _encode_case(
    head_dim: int, heads: int, code: tuple[int, int, bool], *, shaped: bool = False
) -> Case:
    key_bits, value_bits, qjl = code
    start = 3
    keys = halves(1, heads, BLOCK + 7, head_dim, mean=3.0)
    values = halves(2, heads, BLOCK + 7, head_dim)
    values[0, start + 5] = 0
    energies = np.zeros((heads, head_dim), np.float32)
    if shaped:
        energies[:] = np.exp(2 * np.random.default_rng(3).standard_normal(energies.shape))
        keys[0, start + 6] = keys[0, start : start + BLOCK].mean(axis=0)
    outputs = {name: np.full((heads, BLOCK, head_dim), np.nan, np.float32) for name in "kv"}

    def run(arrays: Arrays) -> None:
        blocks = ck.TurboQuantBlocks(heads, head_dim, key_bits, value_bits, qjl=qjl)
        blocks.encode(arrays["keys"], arrays["values"], start, arrays["energies"])
        for head in range(heads):
            blocks.decode(0, head, arrays["k"][head], arrays["v"][head])

    @functools.cache
    def expected() -> Mapping[str, Expected]:
        found = {}
        for name, array, bits in (("k", keys, key_bits), ("v", values, value_bits)):
            coding: tq.Coding = "keys" if name == "k" else "values"
            with_qjl = qjl and name == "k"
            rows = array[:, start : start + BLOCK].astype(np.float64)
            if name == "k" and shaped:
                by_head = zip(rows, energies, strict=True)
                sure = np.array([_is_shaped_surely(r, bits, e) for r, e in by_head])
                assert sure.mean() > 0.5
            else:
                sure = np.array([_is_sure(r, bits, coding, with_qjl) for r in rows])
            decoded = np.array(
                [
                    tq.encode(r, bits, coding, qjl=with_qjl, energies=e).rows()
                    for r, e in zip(rows, energies, strict=True)
                ]
            )
            size = np.abs(rows).max(axis=2, keepdims=True)
            # A scale may round to the other half: 2^-10 of it.
            allowed = np.where(sure[..., None], (DECODE_ROUNDINGS + 2.0**-10) * size * 3, np.inf)
            found[name] = Expected(decoded, np.broadcast_to(allowed, decoded.shape))
        return found

    return Case(
        f"turboquant_encode-{head_dim}x{heads}-k{key_bits}v{value_bits}{'qjl' * qjl}"
        f"{'-shaped' * shaped}",
        "turboquant_encode",
        {"keys": keys, "values": values, "energies": energies, **outputs},
        ("k", "v"),
        run,
        expected,
        _params(heads, head_dim, code, start=start, capacity=BLOCK + 7),
    )


def _params(
    heads: int, head_dim: int, code: tuple[int, int, bool], **more: float
) -> dict[str, Any]:
    names = ("key_bits", "value_bits", "qjl")
    return {"heads": heads, "head_dim": head_dim, **dict(zip(names, code, strict=True)), **more}


def _whole_queries(seed: int, tokens: int, heads: int, head_dim: int) -> Array:
    """Queries that are whole numbers once rotated, so that rounding them cannot differ."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(-40, 41, (tokens, heads, head_dim)).astype(np.float64)
    whole[..., head_dim // 2] = 127
    signs = tq.rotation_signs(tq.KEY_SEED, head_dim)
    return tq.unrotate(whole / 40, signs).astype(np.float32)


def _attention_case(
    shape: tuple[int, int, int],
    code: tuple[int, int, bool],
    counts: tuple[int, ...],
    tokens: int,
    tail: int,
) -> Case:
    (head_dim, heads, group), (key_bits, value_bits, qjl) = shape, code
    scale = head_dim**-0.5
    coded = []
    for index in range(len(counts)):
        keys = halves(10 + index, heads, BLOCK, head_dim, mean=2.0)
        values = halves(50 + index, heads, BLOCK, head_dim)
        coded.append(
            [
                (
                    tq.encode(keys[head], key_bits, "keys", qjl=qjl),
                    tq.encode(values[head], value_bits, "values"),
                )
                for head in range(heads)
            ]
        )
    packed = np.frombuffer(
        b"".join(tq.pack_record(*record) for block in coded for record in block), np.uint8
    ).reshape(len(counts), -1)
    arrays = {
        "blocks": packed,
        "counts": np.array(counts, np.int32),
        "q": _whole_queries(3, tokens, heads * group, head_dim),
        "keys": halves(4, heads, tail + 2, head_dim, mean=2.0),
        "values": halves(5, heads, tail + 2, head_dim),
        "out": np.full((tokens, heads * group, head_dim), np.nan, np.float32),
    }

    def run(given: Arrays) -> None:
        blocks = ck.TurboQuantBlocks(heads, head_dim, key_bits, value_bits, qjl=qjl)
        for block, count in zip(given["blocks"], given["counts"], strict=True):
            blocks.load(block, int(count))
        ck.turboquant_attention(
            blocks, given["q"], given["keys"], given["values"], tail, scale, given["out"]
        )

    @functools.cache
    def expected() -> Mapping[str, Expected]:
        want = np.empty((tokens, heads * group, head_dim))
        allowed = np.empty((tokens, heads * group, 1))
        plain_keys, plain_values = (arrays[n].astype(np.float64) for n in ("keys", "values"))
        for token in range(tokens):
            visible = tail - tokens + token + 1
            for head in range(heads * group):
                q, kv_head = arrays["q"][token, head][None], head // group
                records = [block[kv_head] for block in coded]
                scores, rows = [], []
                for (coded_keys, coded_values), count in zip(records, counts, strict=True):
                    scores.append(tq.coded_scores(q, coded_keys)[0, :count])
                    rows.append(coded_values.rows()[:count])
                scores.append(plain_keys[kv_head, :visible] @ q[0])
                rows.append(plain_values[kv_head, :visible])
                joined = np.concatenate(scores) * scale
                weights = np.exp(joined - joined.max())
                want[token, head] = weights @ np.concatenate(rows) / weights.sum()
                size = max(float(np.abs(r).max()) for r in rows)
                steps = ATTENTION_ROUNDINGS + PROJECTION_STEP * qjl
                # Each block's weights are rounded to 14 bits of its own largest, at most the row's.
                steps += WEIGHT_STEP * 4 * sum(counts) * weights.max() / weights.sum()
                allowed[token, head] = size * steps
        return {"out": Expected(want, np.broadcast_to(allowed, want.shape))}

    return Case(
        f"turboquant_attention-{head_dim}x{heads}x{group}-k{key_bits}v{value_bits}{'qjl' * qjl}"
        f"-{'.'.join(map(str, counts))}-{tokens}-{tail}",
        "turboquant_attention",
        arrays,
        ("out",),
        run,
        expected,
        _params(
            heads,
            head_dim,
            code,
            tokens=tokens,
            group=group,
            tail=tail,
            capacity=tail + 2,
            num_blocks=len(counts),
            scale=scale,
        ),
    )


@functools.cache
def all_cases() -> tuple[Case, ...]:
    return tuple(_all_cases())


def _all_cases() -> Iterator[Case]:
    for head_dim, heads, _ in SHAPES:
        for code in CODES:
            # One coordinate has no residual: its sign is a toss between equal levels.
            if not (head_dim == 1 and code[2]):
                yield _encode_case(head_dim, heads, code)
    for head_dim, heads, code in (
        *((64, 3, CODES[0]), (64, 2, CODES[1]), (128, 2, CODES[2]), (256, 2, CODES[1])),
        *((1, 2, CODES[0]), (80, 1, CODES[0]), (64, 1, CODES[5])),
    ):
        yield _encode_case(head_dim, heads, code, shaped=True)
    for shape in SHAPES:
        yield _attention_case(shape, CODES[0], (128,), 1, 5)
        yield _attention_case(shape, CODES[1], (128, 37), 2, 9)
    for code in CODES:
        yield _attention_case((128, 2, 4), code, (128, 1, 128), 1, 1)
        yield _attention_case((80, 1, 3), code, (128, 128), 3, 130)
    # Splits over blocks; many rows: more than one tile.
    yield _attention_case((64, 2, 3), CODES[0], (128,) * 11, 1, 40)
    yield _attention_case((64, 1, 9), CODES[1], (128, 5), 9, 64)
