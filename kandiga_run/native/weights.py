"""Tensors of a container by their checkpoint names, as what the kernels take.

Matrices are views of the mapped container. Vectors (norm weights, biases) are small and converted
to float32 once. The architecture says which shapes it wants; bits and group size follow from the
shapes stored, tensor by tensor, so mixed quantization needs no table.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cython_kernels import Matrix
from formats import DenseTensor
from kandiga_run.container import Model
from kandiga_run.engine.arithmetic import Arithmetic
from kandiga_run.errors import RunError
from kandiga_run.native.dense_copy import DenseCopy

_FLOATS = ("f16", "bf16", "f32")


class Weights:
    """The dense tensors of a model; remembers which ones were used."""

    def __init__(
        self, model: Model, arithmetic: Arithmetic = "exact", copy: DenseCopy | None = None
    ) -> None:
        """copy: where matrices are to lie, if not in the container's own pages."""
        self._model = model
        self._copy = copy
        #: what quantized matrices are multiplied in
        self.arithmetic: Arithmetic = arithmetic
        #: names of the tensors taken so far
        self.used: set[str] = set()
        #: those of them of which a token touches one row: an embedding that is not the head too
        self.by_row: set[str] = set()
        #: the matrices read in full, and the names of what each was made of
        self.matrices: list[tuple[Matrix, tuple[str, ...]]] = []
        #: of one token with all matrices taken so far
        self.multiply_adds = 0
        self._ignored: set[str] = set()
        #: Added to norm weights: 1 for checkpoints that store them relative to one.
        self.norm_offset = 0.0

    def __contains__(self, name: str) -> bool:
        return name in self._model.dense

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.dense)

    @property
    def nbytes(self) -> int:
        """Return the memory taken by the tensors that every token reads in full."""
        in_full = self.used - self.by_row
        if self._copy is not None:
            return self._copy.nbytes(in_full)
        return sum(self._model.dense[name].length_bytes for name in in_full)

    def touched_bytes(self, num_tokens: int) -> int:
        """Return the most that `num_tokens` tokens can touch of the tensors read by row."""
        tensors = [self._model.dense[name] for name in self.by_row]
        return sum(min(t.length_bytes, num_tokens * _row_pages_bytes(t)) for t in tensors)

    def linear(
        self,
        name: str,
        out_features: int,
        in_features: int,
        *,
        bias: bool = False,
        chooses: bool = False,
    ) -> Matrix:
        """Return the matrix (out_features, in_features) of a linear layer, quantized or not.

        chooses: its results are compared, as a router's are, where an error of int8 could turn a
        choice around; such a matrix is multiplied in int16 at least.

        RunError when tensors are missing, of another shape, or in a mode the kernels lack.
        """
        self.multiply_adds += out_features * in_features
        bias_values = self.vector(f"{name}.bias", out_features) if bias else None
        if f"{name}.scales" in self:
            arithmetic = "int16" if chooses and self.arithmetic == "int8" else self.arithmetic
            matrix = self._affine(name, out_features, in_features, bias_values, arithmetic)
            parts = tuple(f"{name}.{role}" for role in ("weight", "scales", "biases"))
            self.matrices.append((matrix, parts))
            return matrix
        weight, dtype = self._array(f"{name}.weight", (out_features, in_features))
        if dtype not in _FLOATS:
            raise RunError(f"{name}.weight: dtype {dtype} without scales, wanted f16, bf16 or f32")
        matrix = Matrix.dense(
            weight,
            out_features=out_features,
            in_features=in_features,
            dtype=dtype,
            bias=bias_values,
        )
        self.matrices.append((matrix, (f"{name}.weight",)))
        return matrix

    def table(self, name: str, num_rows: int, num_columns: int) -> Matrix:
        """Return a matrix of which a token needs a single row."""
        before, copy = set(self.used), self._copy
        self._copy = None
        matrix = self.linear(name, num_rows, num_columns)
        self._copy = copy
        self.by_row.update(self.used - before)
        self.matrices.pop()
        self.multiply_adds -= num_rows * num_columns
        return matrix

    def vector(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Return a small tensor of this shape as a float32 copy."""
        tensor = self._checked(name, shape)
        return to_float32(self._model.dense_array(name), tensor.dtype, name)

    def norm(self, name: str, size: int) -> NDArray[np.float32]:
        """Return the weight of an RMSNorm, with the checkpoint's offset added."""
        return self.vector(name, size) + np.float32(self.norm_offset)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the stored shape of a tensor."""
        return self._tensor(name).shape

    def ignore(self, *prefixes: str) -> None:
        """Accept tensors that the text model does not use (vision tower, MTP head)."""
        self._ignored.update(name for name in self._model.dense if name.startswith(prefixes))

    def check_all_used(self) -> None:
        """Refuse a checkpoint with tensors that the architecture did not ask for.

        A tensor nobody reads is a feature nobody computes: a bias, an extra norm.
        """
        unused = sorted(set(self._model.dense) - self.used - self._ignored)
        if unused:
            raise RunError(
                f"{len(unused)} tensors of the checkpoint have no place in the native "
                f"{self._model.architecture} architecture, the first is {unused[0]}; "
                "try --engine mlx"
            )

    def _affine(
        self,
        name: str,
        out_features: int,
        in_features: int,
        bias: NDArray[np.float32] | None,
        arithmetic: Arithmetic,
    ) -> Matrix:
        scales_shape = self.shape(f"{name}.scales")
        weight_shape = self.shape(f"{name}.weight")
        scale_dtype = self._tensor(f"{name}.scales").dtype
        if scale_dtype not in _FLOATS or f"{name}.biases" not in self:
            raise RunError(
                f"{name}: quantized with {scale_dtype} scales and no affine biases, a mode the "
                "native engine does not compute; use --engine mlx"
            )
        group_size, rest = divmod(in_features, scales_shape[-1])
        bits, odd = divmod(weight_shape[-1] * 32, in_features)
        if rest or odd:
            raise RunError(
                f"{name}: weight {weight_shape} and scales {scales_shape} do not fit "
                f"{in_features} input features"
            )
        weight, weight_dtype = self._array(f"{name}.weight", (out_features, weight_shape[-1]))
        if weight_dtype != "u32":
            raise RunError(f"{name}.weight: dtype {weight_dtype} beside scales, wanted u32")
        groups = (out_features, scales_shape[-1])
        try:
            return Matrix.affine(
                weight,
                self._array(f"{name}.scales", groups)[0],
                self._array(f"{name}.biases", groups)[0],
                out_features=out_features,
                in_features=in_features,
                bits=bits,
                group_size=group_size,
                scale_dtype=scale_dtype,
                bias=bias,
                arithmetic=arithmetic,
            )
        except ValueError as error:
            raise RunError(f"{name}: {error}; use --engine mlx") from error

    def _array(self, name: str, shape: tuple[int, ...]) -> tuple[NDArray[np.generic], str]:
        dtype = self._checked(name, shape).dtype
        where = self._model.dense_array if self._copy is None else self._copy.array
        return where(name), dtype

    def _checked(self, name: str, shape: tuple[int, ...]) -> DenseTensor:
        tensor = self._tensor(name)
        if tensor.shape != shape:
            raise RunError(f"{name}: shape {tensor.shape}, the config asks for {shape}")
        self.used.add(name)
        return tensor

    def _tensor(self, name: str) -> DenseTensor:
        try:
            return self._model.dense[name]
        except KeyError:
            raise RunError(f"{name}: no such tensor in the container") from None


def _row_pages_bytes(tensor: DenseTensor) -> int:
    """Return the pages that one row may lie on; rows are not aligned to pages."""
    row_bytes = tensor.length_bytes // tensor.shape[0]
    return (-(-row_bytes // mmap.PAGESIZE) + 1) * mmap.PAGESIZE


def to_float32(array: NDArray[np.generic], dtype: str, name: str) -> NDArray[np.float32]:
    """Return a float32 copy of stored values; bf16 arrives as uint16."""
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype in ("f16", "f32"):
        return array.astype(np.float32)
    raise RunError(f"{name}: dtype {dtype}, wanted f16, bf16 or f32")
