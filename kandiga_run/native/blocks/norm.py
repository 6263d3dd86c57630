"""RMSNorm, alone or fused with the residual addition before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import add_rms_norm, rms_norm

Array = NDArray[np.float32]


class RMSNorm:
    """x / rms(x) * weight, with weight (H,)."""

    def __init__(self, weight: Array, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def forward(self, x: Array, out: Array) -> None:
        """Normalize x (T, H) into out (T, H)."""
        rms_norm(x, self._weight, self._eps, out)

    def add_forward(self, x: Array, delta: Array, out: Array) -> None:
        """Add delta (T, H) to x (T, H) in place and normalize the sum into out (T, H)."""
        add_rms_norm(x, delta, self._weight, self._eps, out)
