"""Mixture of experts: route, bring the chosen experts in, compute each as it arrives, combine.

A chunk of tokens needs each expert once, however many tokens chose it: reads are per chunk, not
per token. Results are summed in the router's order, so the order in which experts happen to arrive
changes no bit of the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cython_kernels import (
    ExpertLayout,
    expert_mlp,
    expert_scratch,
    matmul,
    moe_combine,
    sigmoid_scale_add,
    top_k_routing,
)
from kandiga_run.experts.store import Arrival, ExpertStore
from kandiga_run.native.blocks.mlp import MLP
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]
RoutingMode = Literal["softmax_then_topk", "softmax_then_topk_normalized", "topk_then_softmax"]


def routing_mode(norm_topk_prob: bool) -> RoutingMode:
    """Return the Qwen families' routing: softmax over all experts, renormalized or not."""
    return "softmax_then_topk_normalized" if norm_topk_prob else "softmax_then_topk"


@dataclass(frozen=True)
class MoEShape:
    """Sizes and options of a mixture-of-experts layer; `top_k` is the K of this run."""

    hidden_size: int
    num_experts: int
    top_k: int
    routing: RoutingMode


class SharedExpert:
    """An expert every token uses, scaled by the sigmoid of its own gate."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        hidden_size: int,
        intermediate_size: int,
        scratch: Scratch,
    ) -> None:
        self._mlp = MLP(weights, f"{name}.shared_expert", hidden_size, intermediate_size, scratch)
        self._gate = weights.linear(f"{name}.shared_expert_gate", 1, hidden_size)
        self._hidden_size = hidden_size
        self._scratch = scratch
        scratch.declare("feed_forward/shared_expert", hidden_size)
        scratch.declare("feed_forward/shared_expert_gate", 1)

    def add_forward(self, x: Array, out: Array) -> None:
        """Add the shared expert's answer to x (T, H) to out (T, H)."""
        answer = self._scratch.rows("feed_forward/shared_expert", x.shape[0], self._hidden_size)
        gate = self._scratch.rows("feed_forward/shared_expert_gate", x.shape[0], 1)
        self._mlp.forward(x, answer)
        matmul(self._gate, x, gate)
        sigmoid_scale_add(answer, gate, out)


@dataclass(frozen=True)
class Choice:
    """Which (token, k) pairs want which expert.

    experts (n,) int32; the pairs (T * K,), a pair being token * K + k, grouped by expert: those of
    experts[i] are pairs[starts[i]:starts[i + 1]]. Without starts each expert has one pair.
    """

    experts: NDArray[np.int32]
    pairs: NDArray[np.int64]
    starts: NDArray[np.int64] | None

    @staticmethod
    def group(indices: NDArray[np.int32]) -> Choice:
        """Group the experts chosen by a chunk, indices (T, K)."""
        flat = indices.reshape(-1)
        if indices.shape[0] == 1:  # decode: a token's experts differ, nothing to group
            return Choice(flat.copy(), np.arange(flat.size), None)
        pairs = np.argsort(flat, kind="stable")
        experts, starts = np.unique(flat[pairs], return_index=True)
        return Choice(experts, pairs, np.append(starts, flat.size))

    def pairs_of(self, groups: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the pairs of experts[i] for i in groups, one after another, and where each begins.

        Shapes: (R,) and (len(groups) + 1,).
        """
        if self.starts is None:
            return self.pairs[groups], np.arange(len(groups) + 1, dtype=np.int32)
        pieces = [self.pairs[self.starts[i] : self.starts[i + 1]] for i in groups]
        offsets = np.zeros(len(groups) + 1, np.int32)
        offsets[1:] = np.cumsum([piece.size for piece in pieces])
        return np.concatenate(pieces), offsets


class MoE:
    """out = sum over the chosen experts of score * expert(x) [+ shared expert]."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        layer: int,
        shape: MoEShape,
        layout: ExpertLayout,
        store: ExpertStore,
        scratch: Scratch,
        shared_expert: SharedExpert | None = None,
    ) -> None:
        self._layer = layer
        self._shape = shape
        self._layout = layout
        self._store = store
        self._scratch = scratch
        self._shared_expert = shared_expert
        self._router = weights.linear(f"{name}.gate", shape.num_experts, shape.hidden_size)
        scratch.declare("feed_forward/router_logits", shape.num_experts)
        scratch.declare("feed_forward/router_experts", shape.top_k, np.int32)
        scratch.declare("feed_forward/router_scores", shape.top_k)
        scratch.declare("feed_forward/expert_order", shape.top_k, np.int32)
        scratch.declare("feed_forward/expert_outputs", shape.top_k * shape.hidden_size)
        scratch.declare_bytes(
            "feed_forward/expert_scratch",
            expert_scratch(layout, scratch.max_rows * shape.top_k).nbytes,
        )

    def forward(self, x: Array, out: Array) -> None:
        """Compute x (T, H) into out (T, H)."""
        num_tokens, top_k = x.shape[0], self._shape.top_k
        indices = self._scratch.rows(
            "feed_forward/router_experts", num_tokens, top_k, dtype=np.int32
        )
        scores = self._scratch.rows("feed_forward/router_scores", num_tokens, top_k)
        logits = self._scratch.rows(
            "feed_forward/router_logits", num_tokens, self._shape.num_experts
        )
        matmul(self._router, x, logits)
        top_k_routing(logits, top_k, self._shape.routing, indices, scores)

        num_pairs = num_tokens * top_k
        outputs = self._scratch.rows(
            "feed_forward/expert_outputs", num_tokens, top_k, self._shape.hidden_size
        )
        outputs = outputs.reshape(num_pairs, self._shape.hidden_size)
        order = self._scratch.rows(
            "feed_forward/expert_order", num_tokens, top_k, dtype=np.int32
        ).reshape(-1)
        choice = Choice.group(indices)
        place = {expert: i for i, expert in enumerate(choice.experts.tolist())}
        out.fill(0.0)
        with self._store.fetch(self._layer, choice.experts) as arrivals:
            if self._shared_expert is not None:  # while the reads are in flight
                self._shared_expert.add_forward(x, out)
            done = 0
            for batch in arrivals.batches():
                done = self._compute(batch, choice, place, x, outputs, order, done)
        moe_combine(outputs, scores, order, out)

    def _compute(
        self,
        batch: list[Arrival],
        choice: Choice,
        place: dict[int, int],
        x: Array,
        outputs: Array,
        order: NDArray[np.int32],
        done: int,
    ) -> int:
        """Compute arrived experts into rows `done` and after of outputs; return the next row.

        order[pair] becomes the row of outputs that holds the pair's result.
        """
        groups = [place[expert] for expert, _ in batch]
        pairs, row_offsets = choice.pairs_of(groups)
        addresses = np.array([address for _, address in batch], np.uint64)
        rows = (pairs // self._shape.top_k).astype(np.int32)
        end = done + pairs.size
        order[pairs] = np.arange(done, end, dtype=np.int32)
        expert_mlp(
            self._layout,
            addresses,
            row_offsets,
            rows,
            x,
            outputs[done:end],
            self._scratch.whole("feed_forward/expert_scratch"),
        )
        return end
