"""The shape every input takes before it is packed: an MLX checkpoint read in slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from formats import dtypes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the checkpoint.

    Attributes:
        name: what mlx-lm loads it as, such as `model.layers.0.mlp.switch_mlp.up_proj.weight`.
        dtype: lower-case name as in `formats.dtypes` ("u32", "bf16", ...).
        shape: as stored; axis 0 of an expert stack is the expert.
        file: the safetensors file of an MLX checkpoint that holds it, such as
            `model-00001-of-00002.safetensors`; `export` groups by it. A source that is not a folder
            of safetensors files names the file it would be in.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def length_bytes(self) -> int:
        """Bytes of the tensor as stored."""
        return math.prod(self.shape) * dtypes.itemsize(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along axis 0 (the whole tensor when it has no axis)."""
        return math.prod(self.shape[1:]) * dtypes.itemsize(self.dtype)


class Source(Protocol):
    """What `convert` and `verify --against` need to know about an input.

    Tensors carry MLX names, MLX byte order and MLX quantization, whatever the file on disk is.
    """

    @property
    def name(self) -> str:
        """The input as the user named it, for messages."""

    @property
    def path(self) -> Path:
        """The folder or file on this machine."""

    @property
    def repository(self) -> str | None:
        """Hub id, when it came from the Hub."""

    @property
    def revision(self) -> str | None:
        """Commit hash on the Hub, when it came from there."""

    @property
    def config(self) -> dict[str, Any]:
        """The parsed config.json, in MLX's terms (`quantization` entry included)."""

    @property
    def files(self) -> Sequence[Path]:
        """Files to stand beside the container under the same names: config.json, tokenizer, ..."""

    @property
    def weight_files(self) -> Mapping[str, Path]:
        """Name -> file the weights really come from; their sha256 goes into the container."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in the order of the files."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines the user should read, such as what is left out."""

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows [start_row, start_row + num_rows) of axis 0 as a C-contiguous array.

        `num_rows=None` means all that follow; the array then keeps its leading axis, as a slice
        does. bf16 comes as uint16. Memory used is that of the rows asked for, never of the tensor.

        Raises:
            KeyError: no tensor of that name.
            errors.PackError: the file cannot give those bytes.
        """

    def close(self) -> None:
        """Release files and temporary folders. Safe to call twice."""


@runtime_checkable
class RowReader(Protocol):
    """A source that any thread may read from: experts are then read, hashed and written side by
    side."""

    def read_row(self, name: str, row: int, out: memoryview) -> None:
        """Fill `out` with one row of axis 0, as `Source.read` gives it."""
