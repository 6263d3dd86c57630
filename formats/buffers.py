"""Any contiguous buffer seen as bytes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt

# collections.abc.Buffer says this exactly, from Python 3.12 on.
Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[Any]


def as_bytes(buffer: Buffer) -> memoryview:
    """Return the bytes of a C-contiguous buffer without a copy, (nbytes,).

    Raises:
        ValueError: if the buffer is not C-contiguous.
    """
    view: memoryview[Any] = memoryview(buffer)  # type: ignore[arg-type]  # 3.12 types ndarray
    if not view.c_contiguous:
        raise ValueError(f"buffer of shape {view.shape} is not C-contiguous")
    if view.nbytes == 0:  # memoryview.cast refuses a zero in the shape
        return memoryview(b"")
    return view.cast("B")
