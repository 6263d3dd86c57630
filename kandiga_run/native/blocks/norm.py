"""RMSNorm, alone or fused with the residual addition before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import AddRmsNorm, rms_norm

Array = NDArray[np.float32]


class RMSNorm:
    """x / rms(x) * weight, with weight (H,)."""

    def __init__(self, weight: Array, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def forward(self, x: Array, out: Array) -> None:
        """Normalize x (T, H) into out (T, H)."""
        rms_norm(x, self._weight, self._eps, out)

    def bind_add(self, x: Array, delta: Array, out: Array) -> AddRmsNorm:
        """Return a call that adds delta to x in place and normalizes the sum into out.

        All are (max_rows, H); the call takes the number of rows.
        """
        return AddRmsNorm(x, delta, self._weight, self._eps, out)
