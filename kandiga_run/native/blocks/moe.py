"""Mixture of experts: route, bring the chosen experts in, compute each as it arrives, combine.

A chunk of tokens needs each expert once, however many tokens chose it: reads are per chunk, not
per token. Results are summed in the router's order, so the order in which experts happen to arrive
changes no bit of the output.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import (
    TIME_DENSE,
    TIME_EXPERTS,
    ExpertLayout,
    Projections,
    expert_scratch,
    label_time,
    moe_combine,
    sigmoid_scale_add,
)
from kandiga_run.experts.compute import compute_all, compute_batch
from kandiga_run.experts.store import ExpertStore
from kandiga_run.native.blocks.mlp import MLP
from kandiga_run.native.blocks.router import Router
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]

# From here on a chunk leaves out few experts of a layer: 2 % if all are chosen equally often.
_CHOICES_AN_EXPERT = 4


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
        self._gate_matrix = weights.linear(f"{name}.shared_expert_gate", 1, hidden_size)
        self._hidden_size = hidden_size
        self._scratch = scratch
        scratch.declare("feed_forward/shared_expert", hidden_size)
        scratch.declare("feed_forward/shared_expert_gate", 1)

    def bind(self, x: Array) -> None:
        """Fix where `forward` finds x (max_rows, H)."""
        rows = self._scratch.max_rows
        self._answer = self._scratch.rows("feed_forward/shared_expert", rows, self._hidden_size)
        self._gate = self._scratch.rows("feed_forward/shared_expert_gate", rows, 1)
        self._mlp.bind(x, self._answer)
        self._project_gate = Projections((self._gate_matrix,), x, (self._gate,))

    def add_forward(self, num_tokens: int, out: Array) -> None:
        """Add the shared expert's answer to the first rows of x to out (T, H)."""
        self._mlp.forward(num_tokens)
        self._project_gate(num_tokens)
        sigmoid_scale_add(self._answer[:num_tokens], self._gate[:num_tokens], out)


class MoE:
    """out = sum over the chosen experts of score * expert(x) [+ shared expert]."""

    def __init__(
        self,
        router: Router,
        store: ExpertStore,
        layer: int,
        layout: ExpertLayout,
        top_k: int,
        scratch: Scratch,
        shared_expert: SharedExpert | None = None,
    ) -> None:
        self._router = router
        self._store = store
        self._layer = layer
        self._layout = layout
        self._top_k = top_k
        self._num_experts = router.num_experts
        self._scratch = scratch
        self._shared_expert = shared_expert
        scratch.declare("feed_forward/results", top_k * layout.hidden_size)
        workspace = expert_scratch(layout, scratch.max_rows * top_k)
        scratch.declare_bytes("feed_forward/expert_workspace", workspace.nbytes)

    def bind(self, x: Array, out: Array) -> None:
        """Fix where `forward` finds x and leaves its result, both (max_rows, H)."""
        self._x, self._out = x, out
        self._router.bind(x)
        if self._shared_expert is not None:
            self._shared_expert.bind(x)

    def forward(self, num_tokens: int) -> None:
        """Compute the first num_tokens rows of x into those of out."""
        x, out = self._x[:num_tokens], self._out[:num_tokens]
        results = self._scratch.rows(
            "feed_forward/results", num_tokens * self._top_k, self._layout.hidden_size
        )
        workspace = self._scratch.whole("feed_forward/expert_workspace")
        assignment, scores = self._router.forward(num_tokens)
        out.fill(0.0)
        addresses = self._store.addresses(self._layer, assignment.experts)
        if addresses is not None:
            self._add_shared_expert(num_tokens, out)
            compute_all(self._layout, addresses, assignment, x, results, workspace)
        else:
            with self._store.fetch(self._layer, assignment.experts) as arrivals:
                self._add_shared_expert(num_tokens, out)  # while the reads are in flight
                for batch in arrivals.batches():
                    compute_batch(self._layout, batch, assignment, x, results, workspace)
            if num_tokens * self._top_k >= _CHOICES_AN_EXPERT * self._num_experts:
                self._store.expect_most_of_next(self._layer)
        label_time(TIME_EXPERTS)
        moe_combine(results, scores, assignment.order, out)

    def _add_shared_expert(self, num_tokens: int, out: Array) -> None:
        if self._shared_expert is not None:
            label_time(TIME_DENSE)
            self._shared_expert.add_forward(num_tokens, out)
