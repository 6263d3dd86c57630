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
    ExpertLayout,
    ExpertSum,
    Projections,
    Steps,
    TokenExperts,
    expert_scratch,
)
from kandiga_run.experts.assignment import Assignment
from kandiga_run.experts.compute import compute_all, compute_batch
from kandiga_run.experts.store import ExpertStore
from kandiga_run.native.blocks.look_ahead import MOST_ROWS, LookAhead
from kandiga_run.native.blocks.mlp import MLP
from kandiga_run.native.blocks.norm import RMSNorm
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
        #: what `forward` leaves: answers (max_rows, H), gates (max_rows, 1) before the sigmoid
        self.answers: Array
        self.answers = self._scratch.rows("feed_forward/shared_expert", rows, self._hidden_size)
        self.gates: Array = self._scratch.rows("feed_forward/shared_expert_gate", rows, 1)
        self._mlp.bind(x, self.answers)
        self._steps = Steps(
            self._mlp.steps, Projections((self._gate_matrix,), x, (self.gates,)), label=TIME_DENSE
        )

    def forward(self, num_tokens: int) -> None:
        """Compute the first num_tokens rows of x into those of answers and gates."""
        self._steps(num_tokens)


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
        self._look_ahead: LookAhead | None = None
        scratch.declare("feed_forward/results", top_k * layout.hidden_size)
        scratch.declare("feed_forward/result_order", top_k, np.int32)
        workspace = expert_scratch(layout, scratch.max_rows * top_k)
        scratch.declare_bytes("feed_forward/expert_workspace", workspace.nbytes)

    def expect(self, norm: RMSNorm, following: MoE) -> None:
        """Take note that `following` is the next layer's, which reads what `norm` leaves."""
        self._look_ahead = LookAhead(following._layer, norm, following._router, self._scratch)

    def bind_look_ahead(self, hidden: Array) -> None:
        """Fix where the hidden state (max_rows, H) is found while this block runs."""
        if self._look_ahead is not None:
            self._look_ahead.bind(hidden)

    def bind(self, x: Array, out: Array) -> None:
        """Fix where `forward` finds x and leaves its result, both (max_rows, H)."""
        scratch, rows, hidden = self._scratch, self._scratch.max_rows, self._layout.hidden_size
        router, shared, top_k = self._router, self._shared_expert, self._top_k
        self._x = x
        self._results = scratch.rows("feed_forward/results", rows * top_k, hidden)
        self._order = scratch.rows("feed_forward/result_order", rows * top_k, dtype=np.int32)
        self._workspace = scratch.whole("feed_forward/expert_workspace")
        router.bind(x)
        if shared is not None:
            shared.bind(x)
        self._compute_one_token = TokenExperts(
            self._layout,
            x,
            router.experts[0],
            self._results[:top_k],
            self._order[:top_k],
            self._workspace,
        )
        self._sum = ExpertSum(
            self._results,
            router.scores,
            self._order,
            out,
            shared=None if shared is None else shared.answers,
            shared_gate=None if shared is None else shared.gates,
        )

    def forward(self, num_tokens: int) -> None:
        """Compute the first num_tokens rows of x into those of out."""
        self._router.forward(num_tokens)
        table = self._store.table(self._layer) if num_tokens == 1 else None
        if table is not None and self._compute_one_token(table):  # the short way
            self._store.count_reused(self._top_k)
            self._compute_shared_expert(1)
        else:
            self._compute_chunk(num_tokens)
        self._sum(num_tokens)

    def _compute_chunk(self, num_tokens: int) -> None:
        experts = self._router.experts[:num_tokens]
        assignment = Assignment(experts, order=self._order[: experts.size])
        addresses = self._store.addresses(self._layer, assignment.experts)
        if addresses is None:
            self._fetch_and_compute(assignment, num_tokens)
            return
        self._compute_shared_expert(num_tokens)
        x, results = self._x[:num_tokens], self._results[: experts.size]
        compute_all(self._layout, addresses, assignment, x, results, self._workspace)

    def _fetch_and_compute(self, assignment: Assignment, num_tokens: int) -> None:
        x, results = self._x[:num_tokens], self._results[: num_tokens * self._top_k]
        with self._store.fetch(self._layer, assignment.experts) as arrivals:
            # While the reads are in flight:
            self._compute_shared_expert(num_tokens)
            self._guess_next(num_tokens)
            if assignment.order.size >= _CHOICES_AN_EXPERT * self._num_experts:
                self._store.expect_most_of_next(self._layer)
            for batch in arrivals.batches():
                compute_batch(self._layout, batch, assignment, x, results, self._workspace)

    def _guess_next(self, num_tokens: int) -> None:
        look_ahead = self._look_ahead
        if look_ahead is not None and num_tokens <= MOST_ROWS and self._store.wants_guesses:
            self._store.guess(look_ahead.layer, look_ahead.guess(num_tokens))

    def _compute_shared_expert(self, num_tokens: int) -> None:
        if self._shared_expert is not None:
            self._shared_expert.forward(num_tokens)
