"""The SwiGLU MLP: dense layers and shared experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import Projections, SiluMul, Steps
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]


class MLP:
    """out = down(silu(gate x) * up x), with intermediate size I."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        hidden_size: int,
        intermediate_size: int,
        scratch: Scratch,
    ) -> None:
        self._gate = weights.linear(f"{name}.gate_proj", intermediate_size, hidden_size)
        self._up = weights.linear(f"{name}.up_proj", intermediate_size, hidden_size)
        self._down = weights.linear(f"{name}.down_proj", hidden_size, intermediate_size)
        self._intermediate_size = intermediate_size
        self._scratch = scratch
        scratch.declare("feed_forward/gate", intermediate_size)
        scratch.declare("feed_forward/up", intermediate_size)

    def bind(self, x: Array, out: Array) -> None:
        """Fix where `forward` finds x and leaves its result, both (max_rows, H)."""
        rows = self._scratch.max_rows
        gate = self._scratch.rows("feed_forward/gate", rows, self._intermediate_size)
        up = self._scratch.rows("feed_forward/up", rows, self._intermediate_size)
        self.steps = Steps(
            Projections((self._gate, self._up), x, (gate, up)),
            SiluMul(gate, up, gate),
            Projections((self._down,), gate, (out,)),
        )

    def forward(self, num_tokens: int) -> None:
        """Compute the first num_tokens rows of x into those of out."""
        self.steps(num_tokens)
