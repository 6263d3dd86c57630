"""Crossing over between numpy, which has no bfloat16, and mlx, imported only when called."""

from __future__ import annotations

from typing import Any

import numpy as np


def cast_like_mlx_lm(name: str, value: Any, dtype: Any, may_cast: Any) -> Any:
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
    import mlx.core as mx

    return getattr(mx, _MLX_NAMES[name])


def dtype_name(dtype: Any) -> str:
    spelled = str(dtype).removeprefix("mlx.core.")
    return next(
        ours for ours, mlx_name in _MLX_NAMES.items() if mlx_name.removesuffix("_") == spelled
    )


def to_mlx(data: np.ndarray, dtype: str) -> Any:
    import mlx.core as mx

    array = mx.array(data)
    return array.view(mx.bfloat16) if dtype == "bf16" else array


def to_numpy(array: Any) -> np.ndarray:
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False))
