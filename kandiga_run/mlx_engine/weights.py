"""Tensors of a container as mlx arrays, and stand-ins for the stacks of routed experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from formats import KexpSet, Layout, dtypes
from kandiga_run.errors import RunError

#: Attribute of a SwitchGLU or SwitchMLP that holds a projection.
PROJECTION_MODULES = {
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
    "gate_up": "gate_up_proj",
    "fc1": "fc1",
    "fc2": "fc2",
}

_MLX_DTYPES = {
    "bool": mx.bool_,
    "u8": mx.uint8,
    "i8": mx.int8,
    "u16": mx.uint16,
    "i16": mx.int16,
    "u32": mx.uint32,
    "i32": mx.int32,
    "u64": mx.uint64,
    "i64": mx.int64,
    "f16": mx.float16,
    "bf16": mx.bfloat16,
    "f32": mx.float32,
    # mlx has no 8-bit floats: it carries their bits, as it does when it reads safetensors.
    "f8_e4m3": mx.uint8,
    "f8_e5m2": mx.uint8,
    "f8_e8m0": mx.uint8,
}


def to_mlx(data: np.ndarray, dtype: str) -> Any:
    """Return a copy of a container array as mx.array; bf16 comes in as uint16."""
    array = mx.array(data)
    return array.view(mx.bfloat16) if dtype == "bf16" else array


def mlx_dtype(name: str) -> Any:
    """Return the mx.Dtype that carries a container dtype; RunError when mlx has none."""
    if name not in _MLX_DTYPES:
        raise RunError(f"the container holds tensors of {name}, which mlx does not know")
    return _MLX_DTYPES[name]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype a container dtype is carried in (bf16: uint16)."""
    return np.dtype(dtypes.numpy_dtype(name))


@dataclass(frozen=True)
class PartOf:
    """Which part of which layer's experts a stand-in stands for."""

    layer: int
    projection: str
    role: str


@dataclass
class StandIns:
    """Arrays in the place of expert stacks: right shape and dtype, never evaluated, so no memory.

    mlx-lm looks at expert tensors while it loads (is this checkpoint sanitized? how many bits?) and
    moves them to their final names. A stand-in that arrives at a module unchanged, the same
    object, proves that mlx-lm uses the stored experts as they are; one that does not arrive was
    rearranged, and the stored blocks would be the wrong numbers.
    """

    arrays: dict[str, Any] = field(default_factory=dict)
    _parts: dict[int, PartOf] = field(default_factory=dict)

    @staticmethod
    def of(container: KexpSet) -> StandIns:
        """Return stand-ins for every routed expert of a container, under checkpoint names."""
        stand_ins = StandIns()
        for entry in container.meta["layers"]:
            layer = entry["layer"]
            stand_ins._add_layer(
                layer, entry["prefix"], entry["num_experts"], container.layout(layer)
            )
        return stand_ins

    def _add_layer(self, layer: int, prefix: str, num_experts: int, layout: Layout) -> None:
        for part in layout.parts:
            name = f"{prefix}.{PROJECTION_MODULES[part.projection]}.{part.role}"
            array = mx.zeros((num_experts, *part.shape), dtype=mlx_dtype(part.dtype))
            self.arrays[name] = array
            self._parts[id(array)] = PartOf(layer, part.projection, part.role)

    def part_of(self, array: Any) -> PartOf | None:
        """Return what an array stands for, None when it is not one of these stand-ins."""
        return self._parts.get(id(array))
