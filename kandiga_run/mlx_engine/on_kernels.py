"""Routed experts on the CPU, straight from where the store put them: plain SwiGLU experts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from cython_kernels import ExpertLayout, expert_mlp, expert_scratch
from formats import Layout
from kandiga_run.experts.store import Arrivals
from kandiga_run.mlx_engine.routing import Routing
from kandiga_run.mlx_engine.weights import mlx_dtype
from kandiga_run.stats import RunStats


class KernelExperts:
    """Experts computed by cython_kernels in float32, with no copy of any weight."""

    name = "kernels"

    def __init__(self, expert_layout: ExpertLayout, layout: Layout) -> None:
        self._layout = expert_layout
        self._weight_dtype = _float_dtype(layout)
        self._scratch = np.empty(0, np.float32)
        self._scratch_rows = 0

    def host_input(self, x: Any) -> Any:
        """Return x (T, hidden) in float32."""
        return x.astype(mx.float32)

    def run(
        self, x: Any, host_input: Any, routing: Routing, arrivals: Arrivals, _stats: RunStats
    ) -> Any:
        """Return (pairs, hidden) in the dtype that mlx-lm's module would answer in."""
        rows_in = np.array(host_input, copy=False)
        out = np.empty((routing.num_pairs, rows_in.shape[1]), np.float32)
        for batch in arrivals.batches():
            pairs, offsets = routing.pairs_of([expert for expert, _ in batch])
            addresses = np.array([address for _, address in batch], np.uint64)
            out[pairs] = self._batch(rows_in, addresses, pairs // routing.num_choices, offsets)
        return mx.array(out).astype(mx.result_type(x.dtype, self._weight_dtype))

    def _batch(
        self,
        x: NDArray[np.float32],
        addresses: NDArray[np.uint64],
        rows: NDArray[np.int32],
        offsets: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        if rows.size > self._scratch_rows:
            self._scratch = expert_scratch(self._layout, rows.size)
            self._scratch_rows = rows.size
        out = np.empty((rows.size, x.shape[1]), np.float32)
        expert_mlp(self._layout, addresses, offsets, rows, x, out, self._scratch)
        return out


def _float_dtype(layout: Layout) -> Any:
    """Return the dtype that mlx would promote activations with: that of scales, else of weights."""
    part = layout.part("gate", "scales") or layout.part("gate", "weight")
    assert part is not None
    return mlx_dtype(part.dtype)
