"""The state of a gated delta layer: fixed in size, whatever the length of the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kandiga_run.kv.prompt_cache import take


class RecurrentState:
    """conv (kernel_size - 1, conv_dim) float32: the last inputs of the convolution.
    delta (num_value_heads, value_head_dim, key_head_dim) float32: the associative memory.

    Kernels update both in place. A past token cannot be taken out again, so there is no trim.
    """

    def __init__(self, conv_shape: tuple[int, int], delta_shape: tuple[int, int, int]) -> None:
        self.conv: NDArray[np.float32] = np.zeros(conv_shape, np.float32)
        self.delta: NDArray[np.float32] = np.zeros(delta_shape, np.float32)

    @property
    def nbytes(self) -> int:
        """Return the size of both arrays."""
        return self.conv.nbytes + self.delta.nbytes

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return how the state is held, and both arrays."""
        return {"format": "recurrent"}, {"conv": self.conv, "delta": self.delta}

    def load(self, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `save` gave; ValueError when it does not fit."""
        if about["format"] != "recurrent":
            raise ValueError(f"held as {about['format']}, wanted recurrent state")
        self.conv[:] = take(arrays, "conv", np.float32, self.conv.shape)
        self.delta[:] = take(arrays, "delta", np.float32, self.delta.shape)
