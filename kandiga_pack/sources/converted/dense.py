"""Convert dense tensors: large ones by rows where that is possible, others whole, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted.arrays import cast_like_mlx_lm, to_mlx, to_numpy
from kandiga_pack.sources.converted.lazy_model import LazyModel

# Published tensors above this, which are embedding tables and output heads, are read by rows.
BY_ROWS_BYTES = 64 << 20
# Published bytes of the rows that are converted together.
SLICE_BYTES = 8 << 20

_QUANTIZED_ROLES = ("weight", "scales", "biases")


class DenseConverter:
    """Converts one dense tensor at a time.

    Args:
        inner: the published checkpoint.
        model: the model with nothing evaluated.
        load: makes that model once more; called when a tensor is asked for that
            was evaluated and let go, since an evaluated array forgets how it was made.
        unchanged: parameter -> published tensor that `sanitize` hands through untouched.
    """

    def __init__(
        self,
        inner: CheckpointSource,
        model: LazyModel,
        load: Callable[[], LazyModel],
        unchanged: Mapping[str, str],
    ) -> None:
        self._inner = inner
        self._model = model
        self._load = load
        self._unchanged = unchanged
        self._name: str | None = None
        self._array: np.ndarray | None = None

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor, or the whole of one without axes."""
        path, _, role = name.rpartition(".")
        published = self._unchanged.get(f"{path}.weight")
        if published is not None and role in _QUANTIZED_ROLES:
            info = self._inner.tensors[published]
            if len(info.shape) == 2 and info.length_bytes > BY_ROWS_BYTES:
                step = max(1, SLICE_BYTES // info.row_bytes)
                pieces = [
                    self._convert_rows(path, role, info, first, min(first + step, stop))
                    for first in range(start, stop, step)
                ]
                return np.concatenate(pieces)
        array = self._evaluated(name)
        return array[start:stop] if array.ndim else array

    def _convert_rows(
        self, path: str, role: str, published: TensorInfo, start: int, stop: int
    ) -> np.ndarray:
        """Cast and quantize some rows: groups never leave their row.

        Weight, scales and biases are asked for one after another, so each row is quantized three
        times. That is cheaper than holding a table of gigabytes.
        """
        import mlx.core as mx

        rows = self._inner.read(published.name, start, stop - start)
        array = to_mlx(rows, published.dtype)
        array = cast_like_mlx_lm(f"{path}.weight", array, self._model.cast, self._model.may_cast)
        if path in self._model.quantized_here:
            group_size, bits, mode = self._model.quantized_here[path]
            packed = mx.quantize(array, group_size, bits, mode=mode)
            array = packed[_QUANTIZED_ROLES.index(role)]
        mx.eval(array)
        return to_numpy(array)

    def _evaluated(self, name: str) -> np.ndarray:
        """Return a tensor whole, keeping it until another one is asked for."""
        import mlx.core as mx

        if self._array is None or name != self._name:
            self._array = None
            if name not in self._model.parameters:
                self._model = self._load()
            array: Any = self._model.parameters.pop(name)
            mx.eval(array)
            self._name, self._array = name, to_numpy(array)
        return self._array
