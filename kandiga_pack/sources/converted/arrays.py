"""Crossing over between numpy, which has no bfloat16, and mlx, imported only when called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kandiga_pack.sources.base import TensorInfo


def cast_like_mlx_lm(name: str, value: Any, dtype: Any, may_cast: Any) -> Any:
    """Cast floating parameters that the model allows to be cast; `dtype` None casts nothing."""
    import mlx.core as mx

    if dtype is not None and may_cast(name) and mx.issubdtype(value.dtype, mx.floating):
        return value.astype(dtype)
    return value


# mlx's dtypes by our names; it loads 8-bit floats as bytes, and its classes know what they mean.
_MLX_NAMES = {
    "bool": "bool_",
    "u8": "uint8",
    "i8": "int8",
    "u16": "uint16",
    "i16": "int16",
    "u32": "uint32",
    "i32": "int32",
    "u64": "uint64",
    "i64": "int64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "c64": "complex64",
    "f8_e4m3": "uint8",
    "f8_e5m2": "uint8",
    "f8_e8m0": "uint8",
}


def mlx_dtype(name: str) -> Any:
    """Return mlx's dtype of this name."""
    import mlx.core as mx

    return getattr(mx, _MLX_NAMES[name])


def dtype_name(dtype: Any) -> str:
    """Return our name of an mlx dtype."""
    spelled = str(dtype).removeprefix("mlx.core.")
    return next(
        ours for ours, mlx_name in _MLX_NAMES.items() if mlx_name.removesuffix("_") == spelled
    )


def placeholder(shape: tuple[int, ...], dtype: str) -> Any:
    """Return an array that betrays itself in whatever is computed from it: NaN.

    0x7f is NaN to both 8-bit floats in use, and those come as bytes.
    """
    import mlx.core as mx

    kind = mlx_dtype(dtype)
    if mx.issubdtype(kind, mx.floating):
        return mx.full(shape, float("nan"), kind)
    return mx.full(shape, 0x7F, kind) if kind == mx.uint8 else mx.zeros(shape, kind)


def has_nan(arrays: Iterable[Any]) -> bool:
    """Whether a floating array among these holds a NaN."""
    import mlx.core as mx

    return any(
        mx.isnan(array).any().item() for array in arrays if mx.issubdtype(array.dtype, mx.floating)
    )


def to_mlx(data: np.ndarray, dtype: str) -> Any:
    """Return a copy of `data` as an mlx array; `dtype` tells bfloat16 from uint16."""
    import mlx.core as mx

    array = mx.array(data)
    return array.view(mx.bfloat16) if dtype == "bf16" else array


def to_numpy(array: Any) -> np.ndarray:
    """Return an evaluated array's data without a copy where numpy can; bfloat16 as uint16."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False))


def tensor_infos(parameters: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Describe every tensor, in the shard files that mlx_lm.convert would write."""
    from mlx_lm.utils import make_shards

    shards = make_shards(dict(parameters))
    count = len(shards)
    return {
        name: TensorInfo(
            name,
            dtype_name(array.dtype),
            tuple(array.shape),
            f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors",
        )
        for number, shard in enumerate(shards, 1)
        for name, array in shard.items()
    }
