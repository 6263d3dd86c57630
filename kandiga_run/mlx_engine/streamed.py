"""The module that stands where a SwitchGLU or SwitchMLP stood."""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kandiga_run.engine.stats import RunStats
from kandiga_run.errors import RunError
from kandiga_run.experts.assignment import Assignment
from kandiga_run.experts.store import Arrivals, ExpertStore
from kandiga_run.mlx_engine.waiting import wait_for
from kandiga_run.mlx_engine.weights import PROJECTION_MODULES


class ExpertCompute(Protocol):
    """A way to compute routed experts."""

    name: str

    def host_input(self, x: Any) -> Any | None:
        """Return what must be on the CPU before `run`, made from x (T, hidden); None for nothing.

        It is evaluated together with the router's choice: one wait serves both.
        """

    def run(
        self,
        x: Any,
        host_input: Any | None,
        assignment: Assignment,
        arrivals: Arrivals,
        stats: RunStats,
    ) -> Any:
        """Return (pairs, hidden): every expert applied to the tokens x (T, hidden) it serves."""


class StreamedExperts(nn.Module):  # type: ignore[misc]
    """Called as mlx-lm calls SwitchGLU: x (..., hidden), indices (..., K) -> (..., K, hidden).

    Waits for the device once, to learn which experts are needed.
    """

    def __init__(self, layer: int, top_k: int | None, module: Any, compute: ExpertCompute) -> None:
        """Stand in for `module`.

        top_k: what the user asked for, checked at every call; None when nothing was asked.
        """
        super().__init__()
        self.layer = layer
        self.top_k = top_k
        self.compute = compute
        self._adopt_children(module)

    def read_from(self, store: ExpertStore) -> None:
        """Take experts from this store."""
        self._store = store

    def _adopt_children(self, module: Any) -> None:
        # muse_spark keeps the norm that follows the experts inside the module.
        for name, child in module.children().items():
            if name not in PROJECTION_MODULES.values() and name != "activation":
                setattr(self, name, child)

    def __call__(self, x: Any, indices: Any) -> Any:
        num_choices = indices.shape[-1]
        if self.top_k not in (None, num_choices):
            raise RunError(
                f"layer {self.layer} uses {num_choices} experts a token where {self.top_k} were "
                "asked for: this family does not take the number from its config; "
                "run it without --experts or --fast"
            )
        tokens = x.reshape(-1, x.shape[-1])
        if tokens.shape[0] * num_choices != indices.size:
            raise RunError(
                f"layer {self.layer}: {tokens.shape[0]} tokens but router choices of shape "
                f"{indices.shape}: the mlx engine cannot stream this family"
            )
        host_input = self.compute.host_input(tokens)
        choices = indices.reshape(-1, num_choices).astype(mx.int32)
        wait_for(self._store.stats, choices, host_input)
        assignment = Assignment(np.array(choices))
        with self._store.fetch(self.layer, assignment.experts) as arrivals:
            y = self.compute.run(tokens, host_input, assignment, arrivals, self._store.stats)
        return y.reshape(*indices.shape, -1)
