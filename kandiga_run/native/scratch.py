"""The buffers between kernels, allocated once and shared by all layers.

Blocks declare what they need when they are built, so the size of everything is known before the
first token: that is what a memory budget is checked against. A buffer is allocated at its full
size; the system charges only the part that chunks really touch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Scratch:
    """Named buffers for chunks of up to `max_rows` tokens; the same name is the same memory."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._bytes: dict[str, int] = {}
        self._buffers: dict[str, NDArray[np.uint8]] = {}
        self._views: dict[tuple[Any, ...], NDArray[Any]] = {}

    def declare(self, name: str, width: int, dtype: DTypeLike = np.float32) -> None:
        """Announce rows of up to `width` values; the widest declaration of a name counts."""
        self.declare_bytes(name, self.max_rows * width * np.dtype(dtype).itemsize)

    def declare_bytes(self, name: str, nbytes: int) -> None:
        """Announce a buffer whose size does not follow from the number of rows."""
        self._bytes[name] = max(nbytes, self._bytes.get(name, 0))

    @property
    def nbytes(self) -> int:
        """Return what all declared buffers hold for the largest chunk."""
        return sum(self._bytes.values())

    def rows(
        self, name: str, num_rows: int, *shape: int, dtype: DTypeLike = np.float32
    ) -> NDArray[Any]:
        """Return an uninitialized array (num_rows, *shape) at the start of a buffer."""
        key = (name, num_rows, shape, dtype)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._view(name, (num_rows, *shape), np.dtype(dtype))
        return view

    def whole(self, name: str) -> NDArray[np.float32]:
        """Return all of a buffer as float32."""
        return self.rows(name, self._bytes[name] // 4)

    def _view(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        needed = int(np.prod(shape)) * dtype.itemsize
        if needed > self._bytes[name]:
            raise ValueError(f"scratch {name!r}: {needed} bytes wanted of {self._bytes[name]}")
        if name not in self._buffers:
            self._buffers[name] = np.empty(self._bytes[name], np.uint8)
        return self._buffers[name][:needed].view(dtype).reshape(shape)
