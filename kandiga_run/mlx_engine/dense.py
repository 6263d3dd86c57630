"""Dense tensors of a container as mlx arrays, each read when it turns out to be wanted."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from formats import KexpSet
from kandiga_run.container.dense_watch import DenseWatch
from kandiga_run.mlx_engine.weights import mlx_dtype, numpy_dtype, to_mlx


class DenseWeights:
    """The dense tensors of a container by checkpoint name.

    stand_ins: name -> array of the right shape and dtype that nothing has been read for.
    """

    def __init__(self, container: KexpSet, watch: DenseWatch) -> None:
        """watch: is shown everything that is read."""
        self._container = container
        self._watch = watch
        self.stand_ins: dict[str, Any] = {
            name: mx.zeros(tensor.shape, mlx_dtype(tensor.dtype))
            for name, tensor in container.dense.items()
        }
        self._names = {id(array): name for name, array in self.stand_ins.items()}

    def name_of(self, array: Any) -> str | None:
        """Return the tensor an array stands in for, None when it is not one of `stand_ins`."""
        return self._names.get(id(array))

    def read(self, name: str) -> Any:
        """Return a tensor as mx.array; KexpError when its file ends early."""
        tensor = self._container.dense[name]
        # Read, not copied from the map: page faults bring a cold file in at a tenth of the speed.
        data = np.empty(tensor.shape, numpy_dtype(tensor.dtype))
        shard = self._container.shards[tensor.shard]
        shard.read_into(data.reshape(-1).view(np.uint8).data, tensor.offset_bytes)
        self._watch.saw(tensor.offset_bytes, data)
        return to_mlx(data, tensor.dtype)

    def read_all(self) -> dict[str, Any]:
        """Return name -> mx.array of every tensor."""
        return {name: self.read(name) for name in self.stand_ins}
