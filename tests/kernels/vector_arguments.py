"""What cases of the vector kernels are made of: arguments in arrays, and what rounding allows."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kernels.cases import EPS32, Arrays, Case, Expected

Array = NDArray[Any]
Pick = Callable[[Array], Array]

# The factor of a norm is a sum of squares, of which at most 64 are added one after another in one
# lane, then a root and a division: the worst seen is 3 roundings, the products around it add 3.
NORM_ROUNDINGS = 8 * EPS32
# exp, then an addition and a division.
SIGMOID_ROUNDINGS = 6 * EPS32
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 80, 127, 128, 257, 1000)


@dataclass(frozen=True)
class Arg:
    """An argument: the array the test places, and the slice of it that the kernel is given."""

    base: Array
    pick: Pick = lambda base: base

    @property
    def view(self) -> Array:
        return self.pick(self.base)

    def params(self, name: str) -> dict[str, float]:
        """Shape, strides and start of the view in elements, as runner_vector.c reads them."""
        view, item = self.view, self.base.itemsize
        start = view.ctypes.data - self.base.ctypes.data
        shape, strides = list(view.shape), [stride // item for stride in view.strides]
        if view.ndim == 1:
            shape, strides = [1, 1, *shape], [0, 0, 1]
        elif view.ndim == 2:
            shape, strides = [shape[0], 1, shape[1]], [strides[0], 0, 1]
        names = ("n0", "n1", "width", "stride0", "stride1", "start")
        values = (*shape, strides[0], strides[1], start // item)
        return {f"{name}.{key}": value for key, value in zip(names, values, strict=True)}


Results = Mapping[str, tuple[ArrayLike, ArrayLike]]


def vector_case(
    id: str,
    op: str,
    args: Mapping[str, Arg],
    outputs: tuple[str, ...],
    call: Callable[[Arrays], None],
    results: Callable[[Arrays], Results],
    **params: float,
) -> Case:
    """A case of named arguments; `results` gives each output view and what it may be off by."""

    def views(arrays: Arrays) -> Arrays:
        return {name: arg.pick(arrays[name]) for name, arg in args.items()}

    @functools.cache
    def expected() -> dict[str, Expected]:
        found = {}
        for name, (value, allowed) in results({n: a.view for n, a in args.items()}).items():
            whole = args[name].base.astype(np.float64)
            tolerance = np.zeros(whole.shape)
            args[name].pick(whole)[...] = value
            args[name].pick(tolerance)[...] = allowed
            found[name] = Expected(whole, tolerance)
        return found

    numbers = dict(params)
    for name, arg in args.items():
        numbers |= arg.params(name)
    return Case(
        id,
        op,
        {name: arg.base for name, arg in args.items()},
        outputs,
        lambda arrays: call(views(arrays)),
        expected,
        numbers,
    )


def normal(seed: int, *shape: int, scale: float = 1.0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32)


def unset(*shape: int) -> Arg:
    """An output that holds NaN until it is written."""
    return Arg(np.full(shape, np.nan, dtype=np.float32))


def slice_of(array: Array, before: int = 3, after: int = 2) -> Arg:
    """The same values inside a wider last axis, as one part of a fused projection has them."""
    widths = [(0, 0)] * (array.ndim - 1) + [(before, after)]
    base = np.pad(array, widths, constant_values=12345)
    return Arg(base, lambda b: b[..., before : b.shape[-1] - after])


def magnitude(x: ArrayLike) -> Array:
    return np.abs(np.asarray(x, dtype=np.float64))
