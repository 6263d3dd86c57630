"""The SwiGLU MLP: dense layers and shared experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import matmul, matmul_many, silu_mul
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

    def forward(self, x: Array, out: Array) -> None:
        """Compute x (T, H) into out (T, H)."""
        gate = self._scratch.rows("feed_forward/gate", x.shape[0], self._intermediate_size)
        up = self._scratch.rows("feed_forward/up", x.shape[0], self._intermediate_size)
        matmul_many((self._gate, self._up), x, (gate, up))
        silu_mul(gate, up, gate)
        matmul(self._down, gate, out)
