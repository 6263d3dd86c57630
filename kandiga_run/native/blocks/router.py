"""The router: which experts each token wants, and with which scores."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cython_kernels import TIME_ROUTING, Projections, Steps, TopKRouting
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]
RoutingMode = Literal["softmax_then_topk", "softmax_then_topk_normalized", "topk_then_softmax"]


def routing_mode(norm_topk_prob: bool) -> RoutingMode:
    """Return the Qwen families' routing: softmax over all experts, renormalized or not."""
    return "softmax_then_topk_normalized" if norm_topk_prob else "softmax_then_topk"


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
        self._matrix = weights.linear(name, num_experts, hidden_size, chooses=True)
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self._top_k = top_k
        self._mode = mode
        self._scratch = scratch
        self.declare("feed_forward/router", scratch.max_rows)

    def declare(self, name: str, num_rows: int) -> None:
        """Announce the buffers that `bound` of this name and size takes."""
        for buffer, width in (
            ("logits", self.num_experts),
            ("experts", self._top_k),
            ("scores", self._top_k),
        ):
            self._scratch.declare_bytes(f"{name}_{buffer}", num_rows * width * 4)

    def bind(self, x: Array) -> None:
        """Fix where `forward` finds x (max_rows, H)."""
        #: the experts chosen (max_rows, K), best first, and their scores
        self.experts: NDArray[np.int32]
        self.scores: Array
        self.experts, self.scores, self._steps = self.bound(
            x, "feed_forward/router", self._scratch.max_rows
        )

    def bound(self, x: Array, name: str, num_rows: int) -> tuple[NDArray[np.int32], Array, Steps]:
        """Return (experts (num_rows, K), scores (num_rows, K), the call that fills them from x)."""
        rows = self._scratch.rows
        logits = rows(f"{name}_logits", num_rows, self.num_experts)
        experts = rows(f"{name}_experts", num_rows, self._top_k, dtype=np.int32)
        scores = rows(f"{name}_scores", num_rows, self._top_k)
        steps = Steps(
            Projections((self._matrix,), x, (logits,)),
            TopKRouting(logits, self._mode, experts, scores),
            label=TIME_ROUTING,
        )
        return experts, scores, steps

    def forward(self, num_tokens: int) -> None:
        """Choose for the first num_tokens rows of x, into those of experts and scores."""
        self._steps(num_tokens)
