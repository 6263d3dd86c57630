"""The vector kernels of every instruction set this machine runs, against numpy float64."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import cython_kernels as ck
from cython_kernels import _kernels
from kernels.attention_cases import attention_cases
from kernels.cases import Case, check, guarded, misaligned, run_here
from kernels.delta_cases import delta_cases
from kernels.routing_cases import MODES
from kernels.vector_arguments import normal
from kernels.vector_cases import all_cases

ISAS = ck.available_isas()
CASES = all_cases()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vector(case: Case, isa: str, use_isa: None) -> None:
    check(case, run_here(case, guarded))
    check(case, run_here(case, misaligned))


def test_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES) > 200


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = ck.num_threads()
    yield
    ck.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("isa", ISAS)
def test_result_does_not_depend_on_the_number_of_threads(isa: str, use_isa: None) -> None:
    for case in (*attention_cases(), *delta_cases()):
        results = []
        for num_threads in (1, 2, 5):
            ck.set_num_threads(num_threads)
            results.append(run_here(case, np.copy))
        for name in case.outputs:
            assert {result[name].tobytes() for result in results} == {results[0][name].tobytes()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("top_k", [1, 8, 100])
def test_nan_logits_give_nan_scores_and_distinct_indices(
    top_k: int, mode: str, isa: str, use_isa: None
) -> None:
    logits = normal(1, 4, 100)
    logits[1, 70] = np.nan
    logits[2, :] = np.nan
    logits[3, ::2] = -np.inf
    logits[3, 1] = np.nan
    indices = np.empty((4, top_k), np.int32)
    scores = np.empty((4, top_k), np.float32)
    ck.top_k_routing(logits, top_k, mode, indices, scores)
    assert np.isfinite(scores[0]).all()
    assert np.isnan(scores[1:]).all()
    assert all(len(set(row)) == top_k and min(row) >= 0 for row in indices.tolist())
    if top_k < 100:
        assert 70 not in indices[1]
    np.testing.assert_array_equal(indices[2], np.arange(top_k))


@pytest.mark.parametrize("isa", ISAS)
def test_infinite_logit_is_nan_as_in_softmax(isa: str, use_isa: None) -> None:
    logits = np.zeros((1, 33), np.float32)
    logits[0, 20] = np.inf
    indices, scores = np.empty((1, 2), np.int32), np.empty((1, 2), np.float32)
    ck.top_k_routing(logits, 2, "softmax_then_topk", indices, scores)
    np.testing.assert_array_equal(indices, [[20, 0]])
    assert np.isnan(scores[0, 0])


@pytest.mark.parametrize("isa", ISAS)
def test_nan_reaches_the_output(isa: str, use_isa: None) -> None:
    x = normal(1, 1, 40)
    x[0, 37] = np.nan
    out = np.zeros_like(x)
    ck.rms_norm(x, None, 1e-6, out)
    assert np.isnan(out).all()
    ck.silu_mul(x, np.ones_like(x), out)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))
    keys = normal(2, 1, 90, 40)
    keys[0, 66, 3] = np.nan
    attended = np.zeros((1, 1, 40), np.float32)
    ck.attention(normal(3, 1, 1, 40), keys, normal(4, 1, 90, 40), 90, 1.0, attended)
    assert np.isnan(attended).all()


@pytest.mark.parametrize("isa", ISAS)
def test_outputs_may_be_inputs(isa: str, use_isa: None) -> None:
    x, gate = normal(1, 3, 70), normal(2, 3, 70)
    weight = normal(3, 70)
    apart = np.empty_like(x)
    for call in (
        lambda x, out: ck.rms_norm(x, weight, 1e-6, out),
        lambda x, out: ck.silu_mul(x, gate, out),
        lambda x, out: ck.silu_mul(gate, x, out),
        lambda x, out: ck.sigmoid_mul(x, gate, out),
        lambda x, out: ck.rms_norm_gated(x, gate, weight, 1e-6, out),
        lambda x, out: ck.rms_norm_gated(gate, x, weight, 1e-6, out),
    ):
        together = x.copy()
        call(x, apart)
        call(together, together)
        np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("chunks", [(17,), (1,) * 17, (5, 1, 11), (16, 1)])
def test_chunks_of_a_sequence_give_the_same_result(
    chunks: tuple[int, ...], isa: str, use_isa: None
) -> None:
    """Convolution and delta rule carry their state: how a prompt is cut in chunks is invisible."""
    x, weight = normal(1, 17, 48), normal(2, 4, 48)
    qk = normal(3, 2, 17, 2, 16)
    for heads in qk:
        ck.l2_normalize_heads(heads, 1e-6, 1.0)
    v, g = normal(4, 17, 4, 24), np.full((17, 4), 0.9, np.float32)
    conv, delta = (np.full(shape, np.nan, np.float32) for shape in ((17, 48), (17, 4, 24)))
    conv_state, state = np.zeros((3, 48), np.float32), np.zeros((4, 24, 16), np.float32)
    whole = [a.copy() for a in (conv, delta, conv_state, state)]
    ck.causal_conv(x, weight, whole[2], whole[0])
    ck.gated_delta(qk[0], qk[1], v, g, g, whole[3], whole[1])
    start = 0
    for size in chunks:
        part = slice(start, start + size)
        ck.causal_conv(x[part], weight, conv_state, conv[part])
        ck.gated_delta(qk[0, part], qk[1, part], v[part], g[part], g[part], state, delta[part])
        start += size
    for seen, want in zip((conv, delta, conv_state, state), whole, strict=True):
        np.testing.assert_array_equal(seen, want)


def test_no_tokens_is_no_work() -> None:
    empty = np.empty((0, 4, 8), np.float32)
    cache = normal(1, 2, 5, 8)
    ck.attention(empty, cache, cache, 3, 1.0, empty)
    ck.rope(empty, np.ones(4, np.float32), 0)
    ck.head_rms_norm(empty, np.ones(8, np.float32), 1e-6)
    ck.kv_append(empty[:, :2], empty[:, :2], cache, cache.copy(), 5)
    ck.top_k_routing(
        np.empty((0, 9), np.float32),
        3,
        MODES[0],
        np.empty((0, 3), np.int32),
        np.empty((0, 3), np.float32),
    )


def test_other_threads_run_meanwhile() -> None:
    """The interpreter lock is released while a kernel runs: some tenths of a second here."""
    q, cache = normal(1, 64, 8, 64), normal(2, 8, 4096, 64)
    before = ck.isa()
    _kernels._force_isa("scalar")
    try:
        busy = threading.Thread(target=ck.attention, args=(q, cache, cache, 4096, 1.0, q.copy()))
        busy.start()
        turns = 0
        while busy.is_alive():
            time.sleep(0.001)
            turns += 1
    finally:
        _kernels._force_isa(before)
    assert turns >= 10
