"""Copies of an mlx state's caches as numpy arrays, and caches made of them again.

mlx-lm gives each cache's contents as a tree of arrays with a few plain values in it; families have
a dozen kinds of caches, so none is looked into.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from kandiga_run.kv.snapshot import LEFT_OUT, LayerPiece

_FORMAT = "mlx"


def piece_of(cache: Any, *, left_out: bool) -> LayerPiece:
    """Copy one layer's cache, or note that it is left out, as one that cannot be filled always is.

    deepseek_v41 has caches that only tell what they hold.
    """
    state = getattr(type(cache), "state", None)
    if left_out or not isinstance(state, property) or state.fset is None:
        return LayerPiece({"format": LEFT_OUT}, {})
    arrays: dict[str, NDArray[Any]] = {}
    dtypes, values = {}, {}
    for name, value in tree_flatten(cache.state):
        if isinstance(value, mx.array):
            arrays[name] = _to_numpy(value)
            dtypes[name] = str(value.dtype).removeprefix("mlx.core.")
        else:
            values[name] = value
    about = {
        "format": _FORMAT,
        "kind": type(cache).__name__,
        # mlx-lm 0.30 has numbers here that later versions hold in `state`.
        "meta": getattr(cache, "meta_state", None),
        "dtypes": dtypes,
        "values": values,
    }
    return LayerPiece(about, arrays)


def fill(cache: Any, piece: LayerPiece) -> None:
    """Make an empty cache what the piece was copied from; ValueError when it is of another kind."""
    about = piece.about
    if about.get("format") != _FORMAT or about.get("kind") != type(cache).__name__:
        raise ValueError(f"a {about.get('kind')}, wanted a {type(cache).__name__}")
    leaves = [(name, _to_mlx(piece.arrays[name], dtype)) for name, dtype in about["dtypes"].items()]
    leaves += about["values"].items()
    cache.state = tree_unflatten(leaves)
    if about["meta"] is not None:
        cache.meta_state = about["meta"]


def _to_numpy(array: mx.array) -> NDArray[Any]:
    # numpy has no bfloat16.
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _to_mlx(array: NDArray[Any], dtype: str) -> mx.array:
    value = mx.array(array)
    return value.view(mx.bfloat16) if dtype == "bfloat16" else value
