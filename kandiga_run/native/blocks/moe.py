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
    expert_scratch,
    label_time,
    matmul,
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
        num_tokens = x.shape[0]
        answer = self._scratch.rows("feed_forward/shared_expert", num_tokens, self._hidden_size)
        gate = self._scratch.rows("feed_forward/shared_expert_gate", num_tokens, 1)
        self._mlp.forward(x, answer)
        matmul(self._gate, x, gate)
        sigmoid_scale_add(answer, gate, out)


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
        self._scratch = scratch
        self._shared_expert = shared_expert
        scratch.declare("feed_forward/results", top_k * layout.hidden_size)
        workspace = expert_scratch(layout, scratch.max_rows * top_k)
        scratch.declare_bytes("feed_forward/expert_workspace", workspace.nbytes)

    def forward(self, x: Array, out: Array) -> None:
        """Compute x (T, H) into out (T, H)."""
        num_tokens, hidden_size = x.shape
        results = self._scratch.rows(
            "feed_forward/results", num_tokens, self._top_k, hidden_size
        ).reshape(-1, hidden_size)
        workspace = self._scratch.whole("feed_forward/expert_workspace")
        assignment, scores = self._router.forward(x)
        out.fill(0.0)
        addresses = self._store.addresses(self._layer, assignment.experts)
        if addresses is not None:
            self._add_shared_expert(x, out)
            compute_all(self._layout, addresses, assignment, x, results, workspace)
        else:
            with self._store.fetch(self._layer, assignment.experts) as arrivals:
                self._add_shared_expert(x, out)  # while the reads are in flight
                for batch in arrivals.batches():
                    compute_batch(self._layout, batch, assignment, x, results, workspace)
        label_time(TIME_EXPERTS)
        moe_combine(results, scores, assignment.order, out)

    def _add_shared_expert(self, x: Array, out: Array) -> None:
        if self._shared_expert is not None:
            label_time(TIME_DENSE)
            self._shared_expert.add_forward(x, out)
