"""How one MLX parameter is read out of GGUF tensors: which ones, in which order of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES

from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf.orders import Order
from kandiga_pack.sources.gguf.reader import GgufTensor
from kandiga_pack.sources.gguf.repack import (
    AFFINE_KINDS,
    FLOAT_KINDS,
    GROUP_SIZE,
    SUPPORTED_TYPES,
    repack_rows,
)

RawRows = npt.NDArray[np.uint8]
Transform = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Output:
    """One tensor of the MLX checkpoint: name, dtype as in `formats.dtypes`, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class MatrixRecipe:
    """A linear layer, an embedding or a stack of experts: `module`.weight and, where the GGUF type
    is quantized, `module`.scales and `module`.biases.

    Args:
        module: MLX module path, such as `model.layers.0.self_attn.q_proj`.
        inputs: GGUF tensors, joined along their rows.
        shape: (rows, columns), or (experts, rows, columns) for a stack.
        rows: order over the joined rows (of one expert, in a stack).
        num_input_rows: joined rows that must be there, where `rows` takes only some of them.
        columns: order over the columns.

    Raises:
        PackError: a type that is not supported, or shapes and types that do not fit together.
    """

    def __init__(
        self,
        module: str,
        inputs: tuple[GgufTensor, ...],
        shape: tuple[int, ...],
        *,
        rows: Order | None = None,
        num_input_rows: int | None = None,
        columns: Order | None = None,
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.shape = shape
        self.kind = inputs[0].type
        self.num_experts = shape[0] if len(shape) == 3 else 1
        self._rows = rows
        if any(tensor.num_rows % self.num_experts for tensor in inputs):
            raise _misfit(inputs, module, shape)
        self._input_rows = [tensor.num_rows // self.num_experts for tensor in inputs]
        self._check(num_input_rows or shape[-2])
        self._units = None if columns is None else self._unit_order(columns)

    def _check(self, num_input_rows: int) -> None:
        check_type(self.inputs[0])
        if len({(tensor.type, tensor.shape[-1]) for tensor in self.inputs}) > 1:
            found = ", ".join(f"{t.name} is {t.type.name} {t.shape}" for t in self.inputs)
            raise PackError(
                f"{self.inputs[0].path.name}: {found}; to become {self.module} they must be alike. "
                "Use a GGUF that keeps them in one type, such as a plain Q8_0"
            )
        columns = self.inputs[0].shape[-1]
        if sum(self._input_rows) != num_input_rows or columns != self.shape[-1]:
            raise _misfit(self.inputs, self.module, self.shape)

    def _unit_order(self, columns: Order) -> Order:
        """Order over quantization blocks (or single floats) that reorders `columns`."""
        block = GGML_QUANT_SIZES[self.kind][0]
        if len(columns) != self.shape[-1] or len(columns) % block:
            raise _misfit(self.inputs, self.module, self.shape)
        groups = columns.reshape(-1, block)
        if np.any(groups != groups[:, :1] + np.arange(block)) or np.any(groups[:, 0] % block):
            raise PackError(
                f"{self.inputs[0].path.name}: tensor {self.inputs[0].name} ({self.kind.name}): its "
                f"heads are not multiples of {block} columns, so its blocks cannot be reordered "
                "without requantizing. Use a GGUF that keeps this tensor in F16 or F32"
            )
        order: Order = groups[:, 0] // block
        return order

    @property
    def bits(self) -> int | None:
        """Bits of a code, None where the weights are floats."""
        return AFFINE_KINDS[self.kind].bits if self.kind in AFFINE_KINDS else None

    @property
    def outputs(self) -> list[Output]:
        if self.bits is None:
            return [Output(f"{self.module}.weight", FLOAT_KINDS[self.kind][0], self.shape)]
        *leading, columns = self.shape
        groups = (*leading, columns // GROUP_SIZE)
        return [
            Output(f"{self.module}.weight", "u32", (*leading, columns * self.bits // 32)),
            Output(f"{self.module}.scales", "f16", groups),
            Output(f"{self.module}.biases", "f16", groups),
        ]

    @property
    def step_bytes(self) -> int:
        """Bytes in the file of one step of axis 0: a row, or an expert of a stack."""
        rows = self.shape[1] if len(self.shape) == 3 else 1
        return rows * self.inputs[0].row_bytes

    def read(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Return `count` >= 1 steps of axis 0 of every output, by role ("weight", ...)."""
        raw = self._raw(start, count)
        shape = (count, *self.shape[1:-1], -1)
        if self.bits is None:
            return {"weight": raw.view(FLOAT_KINDS[self.kind][1]).reshape(shape)}
        rows = repack_rows(raw, self.kind, self.shape[-1], tensor_name=self.inputs[0].name)
        return {
            "weight": rows.weight.reshape(shape),
            "scales": rows.scales.reshape(shape),
            "biases": rows.biases.reshape(shape),
        }

    def _raw(self, start: int, count: int) -> RawRows:
        """Stored rows of `count` steps of axis 0: (rows, bytes of a row) uint8."""
        if self.num_experts == 1 and len(self.shape) == 2:
            raw = self._raw_rows(0, start, start + count)
        elif self._rows is None and len(self.inputs) == 1:
            raw = _stored_rows(self.inputs[0], start * self.shape[1], count * self.shape[1])
        else:
            experts = range(start, start + count)
            raw = np.concatenate([self._raw_rows(e, 0, self.shape[1]) for e in experts])
        if self._units is None:
            return raw
        units = raw.reshape(len(raw), len(self._units), -1)
        return np.ascontiguousarray(units[:, self._units]).reshape(raw.shape)

    def _raw_rows(self, expert: int, start: int, stop: int) -> RawRows:
        """Output rows `start` to `stop` of one expert, as they are stored."""
        wanted = np.arange(start, stop) if self._rows is None else self._rows[start:stop]
        row_bytes = self.inputs[0].row_bytes
        raw = np.empty((len(wanted), row_bytes), np.uint8)
        first = 0
        for tensor, num_rows in zip(self.inputs, self._input_rows, strict=True):
            here = np.flatnonzero((wanted >= first) & (wanted < first + num_rows))
            if len(here):
                local = wanted[here] - first
                low, high = int(local.min()), int(local.max()) + 1
                stored = _stored_rows(tensor, expert * num_rows + low, high - low)
                raw[here] = stored[local - low]
            first += num_rows
        return raw


class VectorRecipe:
    """A small parameter that mlx-lm keeps in floats: a norm, a convolution, a gate vector.

    Args:
        name: full name of the MLX parameter.
        tensor: where it comes from; its values are taken in order and given `shape`.
        order: over axis 0 of the stored values, before `shape` is given.
        transform: float32 to float32, elementwise; the one place where a value may be rounded.
    """

    def __init__(
        self,
        name: str,
        tensor: GgufTensor,
        shape: tuple[int, ...],
        *,
        order: Order | None = None,
        transform: Transform | None = None,
    ) -> None:
        check_type(tensor)
        if tensor.type not in FLOAT_KINDS:
            raise PackError(
                f"{tensor.path.name}: tensor {tensor.name} is {tensor.type.name}, but mlx-lm keeps "
                f"{name} unquantized. Use a GGUF that has it in F32, as llama.cpp writes it"
            )
        if math.prod(tensor.shape) != math.prod(shape):
            raise _misfit((tensor,), name, shape)
        self.name = name
        self.tensor = tensor
        self.shape = shape
        self._order = order
        self._transform = transform

    @property
    def outputs(self) -> list[Output]:
        dtype = FLOAT_KINDS[self.tensor.type][0] if self._transform is None else "f32"
        return [Output(self.name, dtype, self.shape)]

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `count` steps of axis 0, from `start`."""
        dtype = FLOAT_KINDS[self.tensor.type][1]
        values = _stored_rows(self.tensor, 0, self.tensor.num_rows).view(dtype)
        if self._order is not None:
            values = values.reshape(len(self._order), -1)[self._order]
        if self._transform is not None:
            values = self._transform(_to_float32(values, self.tensor))
        return np.ascontiguousarray(values.reshape(self.shape)[start : start + count])


Recipe = MatrixRecipe | VectorRecipe


def check_type(tensor: GgufTensor) -> None:
    """Raise PackError where the type cannot be carried over without loss."""
    if tensor.type not in AFFINE_KINDS and tensor.type not in FLOAT_KINDS:
        raise PackError(
            f"{tensor.path.name}: tensor {tensor.name} is {tensor.type.name}, which MLX's affine "
            f"layout cannot hold without loss; supported are {', '.join(SUPPORTED_TYPES)}. "
            "Use a GGUF in one of these types, or the model's MLX checkpoint"
        )


def _stored_rows(tensor: GgufTensor, start: int, count: int) -> RawRows:
    raw = tensor.read_rows(start, count)
    return np.frombuffer(raw, np.uint8).reshape(count, tensor.row_bytes)


def _to_float32(values: np.ndarray, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    if FLOAT_KINDS[tensor.type][0] == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _misfit(inputs: tuple[GgufTensor, ...], name: str, shape: tuple[int, ...]) -> PackError:
    found = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in inputs)
    return PackError(
        f"{inputs[0].path.name}: {found} cannot become {name} {shape}, the shape that the metadata "
        "asks for. The file is damaged, or not of the architecture it names"
    )
