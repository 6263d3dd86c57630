"""Which experts each token wants, turned into work for whole experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cython_kernels import matmul, top_k_routing
from kandiga_run.experts.store import Arrival
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]
RoutingMode = Literal["softmax_then_topk", "softmax_then_topk_normalized", "topk_then_softmax"]


def routing_mode(norm_topk_prob: bool) -> RoutingMode:
    """Return the Qwen families' routing: softmax over all experts, renormalized or not."""
    return "softmax_then_topk_normalized" if norm_topk_prob else "softmax_then_topk"


@dataclass(frozen=True)
class Work:
    """Experts that have arrived and the rows they serve, as `expert_mlp` takes it.

    Expert addresses[j] serves the tokens rows[row_offsets[j]:row_offsets[j + 1]]; results go to
    rows first_result to end_result of the chunk's results.
    """

    addresses: NDArray[np.uint64]
    row_offsets: NDArray[np.int32]
    rows: NDArray[np.int32]
    first_result: int
    end_result: int


class Assignment:
    """The (token, k) pairs of a chunk, grouped by expert.

    experts (n,) int32 are those needed, each once. order (T * K,) int32 says in which row of the
    results each pair's is found: rows are handed out in the order in which experts arrive.
    """

    def __init__(self, indices: NDArray[np.int32], order: NDArray[np.int32]) -> None:
        """Group the chosen experts, indices (T, K)."""
        num_tokens, self._top_k = indices.shape
        flat = indices.reshape(-1)
        self.order = order
        self._num_results = 0
        # A pair is the number token * K + k. Without starts each expert has one pair.
        self._starts: NDArray[np.int64] | None = None
        if num_tokens == 1:  # decode: a token's experts differ, nothing to group
            self.experts = flat.copy()
            self._pairs = np.arange(flat.size)
        else:
            self._pairs = np.argsort(flat, kind="stable")
            self.experts, starts = np.unique(flat[self._pairs], return_index=True)
            self._starts = np.append(starts, flat.size)
        self._group_of = {expert: i for i, expert in enumerate(self.experts.tolist())}

    def take(self, batch: list[Arrival]) -> Work:
        """Return the work for experts that have arrived, and give their results the next rows."""
        pairs, row_offsets = self._pairs_of([self._group_of[expert] for expert, _ in batch])
        first = self._num_results
        end = self._num_results = first + pairs.size
        self.order[pairs] = np.arange(first, end, dtype=np.int32)
        return Work(
            addresses=np.array([address for _, address in batch], np.uint64),
            row_offsets=row_offsets,
            rows=(pairs // self._top_k).astype(np.int32),
            first_result=first,
            end_result=end,
        )

    def _pairs_of(self, groups: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the pairs of these groups one after another, and where each group begins."""
        if self._starts is None:
            return self._pairs[groups], np.arange(len(groups) + 1, dtype=np.int32)
        pieces = [self._pairs[self._starts[i] : self._starts[i + 1]] for i in groups]
        offsets = np.zeros(len(groups) + 1, np.int32)
        offsets[1:] = np.cumsum([piece.size for piece in pieces])
        return np.concatenate(pieces), offsets


class Router:
    """Scores all experts for each token and chooses K."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        mode: RoutingMode,
        scratch: Scratch,
    ) -> None:
        self._matrix = weights.linear(name, num_experts, hidden_size)
        self._num_experts = num_experts
        self._top_k = top_k
        self._mode = mode
        self._scratch = scratch
        scratch.declare("feed_forward/router_logits", num_experts)
        scratch.declare("feed_forward/router_experts", top_k, np.int32)
        scratch.declare("feed_forward/router_scores", top_k)
        scratch.declare("feed_forward/result_order", top_k, np.int32)

    def forward(self, x: Array) -> tuple[Assignment, Array]:
        """Return what experts have to do for x (T, H), and the scores (T, K)."""
        scratch, num_tokens = self._scratch, x.shape[0]
        logits = scratch.rows("feed_forward/router_logits", num_tokens, self._num_experts)
        shape = (num_tokens, self._top_k)
        scores = scratch.rows("feed_forward/router_scores", *shape)
        indices = scratch.rows("feed_forward/router_experts", *shape, dtype=np.int32)
        order = scratch.rows("feed_forward/result_order", *shape, dtype=np.int32)
        matmul(self._matrix, x, logits)
        top_k_routing(logits, self._top_k, self._mode, indices, scores)
        return Assignment(indices, order.reshape(-1)), scores
