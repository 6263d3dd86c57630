"""Kernels bound to their arrays do what the plain ones do, on the first rows only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cython_kernels as ck
from kernels.vector_arguments import normal

MAX_TOKENS, TOKENS = 5, 3


def dense(out_features: int, in_features: int, seed: int) -> ck.Matrix:
    weight = normal(seed, out_features, in_features)
    return ck.Matrix.dense(weight, out_features=out_features, in_features=in_features, dtype="f32")


def unset(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def expect_first_rows(seen: np.ndarray, want: np.ndarray) -> None:
    """The rows of TOKENS are those wanted, bit by bit; the others were not touched."""
    np.testing.assert_array_equal(seen[:TOKENS], want)
    assert np.isnan(seen[TOKENS:]).all()


def test_projections() -> None:
    x, matrices = normal(1, MAX_TOKENS, 24), (dense(7, 24, 2), dense(33, 24, 3))
    outs = (unset(MAX_TOKENS, 7), unset(MAX_TOKENS, 33))
    ck.Projections(matrices, x, outs)(TOKENS)
    for matrix, out in zip(matrices, outs, strict=True):
        want = unset(TOKENS, matrix.out_features)
        ck.matmul(matrix, x[:TOKENS], want)
        expect_first_rows(out, want)


def test_add_rms_norm() -> None:
    x, delta, weight = normal(1, MAX_TOKENS, 40), normal(2, MAX_TOKENS, 40), normal(3, 40)
    out, want, summed = unset(MAX_TOKENS, 40), unset(TOKENS, 40), x.copy()
    ck.add_rms_norm(summed[:TOKENS], delta[:TOKENS], weight, 1e-6, want)
    ck.AddRmsNorm(x, delta, weight, 1e-6, out)(TOKENS)
    expect_first_rows(out, want)
    np.testing.assert_array_equal(x, summed)


def test_steps_run_in_order() -> None:
    gate, up, weight = normal(1, MAX_TOKENS, 16), normal(2, MAX_TOKENS, 16), dense(9, 16, 3)
    activated, out, want = unset(MAX_TOKENS, 16), unset(MAX_TOKENS, 9), unset(TOKENS, 9)
    steps = ck.Steps(ck.SiluMul(gate, up, activated), ck.Projections((weight,), activated, (out,)))
    steps(TOKENS)
    product = unset(TOKENS, 16)
    ck.silu_mul(gate[:TOKENS], up[:TOKENS], product)
    ck.matmul(weight, product, want)
    expect_first_rows(out, want)


@pytest.mark.parametrize("normed", [True, False])
def test_rotated_heads(normed: bool) -> None:
    queries, keys = normal(1, MAX_TOKENS, 4, 64)[:, :, :32], normal(2, MAX_TOKENS, 2, 32)
    frequencies = (10000.0 ** -(np.arange(8) / 8)).astype(np.float32)
    norms = (normal(3, 32), normal(4, 32)) if normed else (None, None)
    want = [queries[:TOKENS].copy(), keys[:TOKENS].copy()]
    rest = [queries[TOKENS:].copy(), keys[TOKENS:].copy()]
    for heads, weight in zip(want, norms, strict=True):
        if weight is not None:
            ck.head_rms_norm(heads, weight, 1e-6)
        ck.rope(heads, frequencies, 70)
    rotate = ck.RotatedHeads(
        queries, keys, frequencies, query_norm=norms[0], key_norm=norms[1], eps=1e-6
    )
    rotate(TOKENS, 70)
    for seen, first, others in zip((queries, keys), want, rest, strict=True):
        np.testing.assert_array_equal(seen[:TOKENS], first)
        np.testing.assert_array_equal(seen[TOKENS:], others)


def test_top_k_routing() -> None:
    logits = normal(1, MAX_TOKENS, 50)
    indices, scores = np.full((MAX_TOKENS, 4), -1, np.int32), unset(MAX_TOKENS, 4)
    ck.TopKRouting(logits, "softmax_then_topk", indices, scores)(TOKENS)
    want_indices, want_scores = np.empty((TOKENS, 4), np.int32), unset(TOKENS, 4)
    ck.top_k_routing(logits[:TOKENS], 4, "softmax_then_topk", want_indices, want_scores)
    expect_first_rows(scores, want_scores)
    np.testing.assert_array_equal(indices[:TOKENS], want_indices)
    assert (indices[TOKENS:] == -1).all()


@pytest.mark.parametrize("shared", [True, False])
def test_expert_sum(shared: bool) -> None:
    results, scores = normal(1, MAX_TOKENS * 4, 24), normal(2, MAX_TOKENS, 4)
    order = np.random.default_rng(3).permutation(MAX_TOKENS * 4).astype(np.int32)
    answer, gate = normal(4, MAX_TOKENS, 24), normal(5, MAX_TOKENS, 1)
    out, want = unset(MAX_TOKENS, 24), np.zeros((TOKENS, 24), np.float32)
    extra = {"shared": answer, "shared_gate": gate} if shared else {}
    ck.ExpertSum(results, scores, order, out, **extra)(TOKENS)
    if shared:
        ck.sigmoid_scale_add(answer[:TOKENS], gate[:TOKENS], want)
    ck.moe_combine(results, scores[:TOKENS], order[: TOKENS * 4], want)
    # The two fuse their multiplications and additions alike or not, as the compiler likes.
    np.testing.assert_allclose(out[:TOKENS], want, rtol=1e-6, atol=1e-6)
    assert np.isnan(out[TOKENS:]).all()


def test_token_experts() -> None:
    hidden, intermediate, num_experts = 32, 16, 6
    shapes = {
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "down": (hidden, intermediate),
    }
    part_bytes = hidden * intermediate * 4
    parts = {
        (name, "weight"): {
            "offset_bytes": i * part_bytes,
            "dtype": "f32",
            "shape": shape,
            "bits": 0,
            "group_size": 0,
            "mode": "none",
        }
        for i, (name, shape) in enumerate(shapes.items())
    }
    layout = ck.ExpertLayout(parts, hidden_size=hidden, moe_intermediate_size=intermediate)
    blocks = normal(1, num_experts, 3 * hidden * intermediate, scale=0.3)
    table = blocks.ctypes.data + np.arange(num_experts, dtype=np.uint64) * np.uint64(3 * part_bytes)
    x, experts = normal(2, MAX_TOKENS, hidden), np.array([4, 0, 5], np.int32)
    scratch, order = ck.expert_scratch(layout, 3), np.full(3, -1, np.int32)
    results, want = unset(3, hidden), unset(3, hidden)
    ck.expert_mlp(
        layout,
        table[experts],
        np.arange(4, dtype=np.int32),
        np.zeros(3, np.int32),
        x[:1],
        want,
        scratch,
    )
    compute = ck.TokenExperts(layout, x, experts, results, order, scratch)
    assert compute(table)
    np.testing.assert_array_equal(results, want)
    np.testing.assert_array_equal(order, [0, 1, 2])

    results[:] = 7.0
    assert not compute(np.where(np.arange(num_experts) == 5, 0, table).astype(np.uint64))
    assert (results == 7.0).all()
    experts[1] = num_experts
    with pytest.raises(ValueError, match=r"experts\[1\]: 6, expected 0 <= index < 6"):
        compute(table)


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def heads(**changes: Any) -> object:
    arguments: dict[str, Any] = {
        "qkv": f32(5, 2 * 2 * 8 + 4 * 6),
        "z": f32(5, 24),
        "a": f32(5, 4),
        "b": f32(5, 4),
        "out": f32(5, 24),
        "conv_weight": f32(4, 56),
        "a_log": f32(4),
        "dt_bias": f32(4),
        "norm_weight": f32(6),
        "num_key_heads": 2,
        "norm_eps": 1e-6,
        "normalize_eps": 1e-6,
    }
    return ck.GatedDeltaHeads(**(arguments | changes))


def call_heads(*arguments: Any) -> None:
    heads()(*arguments)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heads(num_key_heads=3), "num_key_heads: 3, expected a divisor of the 4 heads"),
        (lambda: heads(qkv=f32(5, 55)), r"qkv: shape \(5, 55\), expected \(5, 56\)"),
        (lambda: heads(z=f32(4, 24)), r"z: shape \(4, 24\), expected \(5, 24\)"),
        (lambda: heads(conv_weight=f32(4, 24)), "conv_weight: float32"),
        (lambda: heads(conv_weight=f32(4, 57)), "conv_weight: float32"),
        (lambda: heads(a_log=f32(3)), r"a_log: shape \(3,\), expected \(4,\)"),
        (lambda: call_heads(6, f32(3, 56), f32(4, 6, 8)), "num_tokens: 6, expected 0 to 5"),
        (lambda: call_heads(1, f32(4, 56), f32(4, 6, 8)), "conv_state: shape"),
        (lambda: call_heads(1, f32(3, 56), f32(4, 8, 6)), "state: shape"),
        (lambda: ck.Projections((dense(3, 8, 1),), f32(2, 7), (f32(2, 3),)), "x: 7 columns"),
        (lambda: ck.Projections((dense(3, 8, 1),), f32(2, 8), (f32(3, 3),)), r"outs\[0\]: shape"),
        (lambda: ck.Projections((), f32(2, 8), ()), "matrices: 0, expected 1 to 15"),
        (lambda: ck.AddRmsNorm(f32(2, 8), f32(2, 7), f32(8), 0.0, f32(2, 8)), "delta: shape"),
        (lambda: ck.SiluMul(f32(2, 8), f32(2, 8), f32(2, 8))(-1), "num_tokens: -1, expected 0"),
        (lambda: ck.RotatedHeads(f32(2, 2, 8), f32(2, 1, 8), f32(5)), "inv_freq: 5 pairs"),
        (lambda: ck.RotatedHeads(f32(2, 2, 8), f32(1, 1, 8), f32(4)), "keys: shape"),
        (lambda: ck.RotatedHeads(f32(2, 2, 8), f32(2, 1, 8), f32(4))(1, -1), "position: -1"),
        (lambda: ck.Steps(), "steps: none"),
    ],
)
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
