"""Routed experts on the CPU, straight from where the store put them: plain SwiGLU experts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from cython_kernels import ExpertLayout, expert_scratch
from formats import Layout
from kandiga_run.engine.stats import RunStats
from kandiga_run.experts.assignment import Assignment
from kandiga_run.experts.compute import compute_batch
from kandiga_run.experts.store import Arrivals
from kandiga_run.mlx_engine.weights import mlx_dtype


class KernelExperts:
    """Experts computed by cython_kernels in float32, with no copy of any weight."""

    name = "kernels"

    def __init__(self, expert_layout: ExpertLayout, layout: Layout) -> None:
        self._layout = expert_layout
        self._weight_dtype = _float_dtype(layout)
        self._workspace = np.empty(0, np.float32)
        self._workspace_rows = 0

    def host_input(self, x: Any) -> Any:
        """Return x (T, hidden) in float32."""
        return x.astype(mx.float32)

    def run(
        self, x: Any, host_input: Any, assignment: Assignment, arrivals: Arrivals, _stats: RunStats
    ) -> Any:
        """Return (pairs, hidden) in the dtype that mlx-lm's module would answer in."""
        rows_in = np.array(host_input, copy=False)
        num_pairs = assignment.order.size
        if num_pairs > self._workspace_rows:
            self._workspace = expert_scratch(self._layout, num_pairs)
            self._workspace_rows = num_pairs
        results = np.empty((num_pairs, rows_in.shape[1]), np.float32)
        for batch in arrivals.batches():
            compute_batch(self._layout, batch, assignment, rows_in, results, self._workspace)
        out = mx.array(results[assignment.order])
        return out.astype(mx.result_type(x.dtype, self._weight_dtype))


def _float_dtype(layout: Layout) -> Any:
    """Return the dtype that mlx would promote activations with: that of scales, else of weights."""
    part = layout.part("gate", "scales") or layout.part("gate", "weight")
    assert part is not None
    return mlx_dtype(part.dtype)
