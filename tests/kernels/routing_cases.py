"""Routing: the best of a token's experts and their scores."""

import itertools
from collections.abc import Iterator

import numpy as np

import cython_kernels as ck
from cython_kernels import reference
from kernels.cases import EPS32, Arrays, Case
from kernels.vector_arguments import Arg, Array, Results, normal, slice_of, unset, vector_case

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
