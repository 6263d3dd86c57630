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
        self.num_experts = num_experts
        self._top_k = top_k
        self._mode = mode
        self._scratch = scratch
        scratch.declare("feed_forward/router_logits", num_experts)
        scratch.declare("feed_forward/router_experts", top_k, np.int32)
        scratch.declare("feed_forward/router_scores", top_k)

    def bind(self, x: Array) -> None:
        """Fix where `forward` finds x (max_rows, H)."""
        scratch, shape = self._scratch, (self._scratch.max_rows, self._top_k)
        logits = scratch.rows("feed_forward/router_logits", scratch.max_rows, self.num_experts)
        #: the experts chosen (max_rows, K), best first, and their scores
        self.experts: NDArray[np.int32]
        self.experts = scratch.rows("feed_forward/router_experts", *shape, dtype=np.int32)
        self.scores: Array = scratch.rows("feed_forward/router_scores", *shape)
        self._steps = Steps(
            Projections((self._matrix,), x, (logits,)),
            TopKRouting(logits, self._mode, self.experts, self.scores),
            label=TIME_ROUTING,
        )

    def forward(self, num_tokens: int) -> None:
        """Choose for the first num_tokens rows of x, into those of experts and scores."""
        self._steps(num_tokens)
