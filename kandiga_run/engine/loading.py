"""From a container to the engine that runs it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kandiga_run.engine.arithmetic import ArithmeticChoice
from kandiga_run.engine.options import Check, EngineName, EngineOptions, Residency
from kandiga_run.engine.seam import Engine
from kandiga_run.errors import RunError
from kandiga_run.kv.choices import KVChoice

if TYPE_CHECKING:
    from kandiga_run.container import Model

#: Architectures of the native engine: `model_type` of config.json.
NATIVE_ARCHITECTURES = ("mixtral", "qwen3_moe", "qwen3_next", "qwen3_5_moe")


def load_engine(
    path: str | Path,
    *,
    engine: EngineName = "auto",
    residency: Residency = "auto",
    memory_bytes: int | None = None,
    num_experts_per_token: int | Literal["fast"] | None = None,
    check: Check = "first-touch",
    num_threads: int | None = None,
    num_readers: int | None = None,
    kv_dtype: Literal["auto", "f16", "f32"] = "auto",
    state_tokens: int = 1,
    arithmetic: ArithmeticChoice = "auto",
    kv: KVChoice = "auto",
    kv_qjl: bool = False,
    kv_protect: int = 0,
) -> Engine:
    """Open a container folder (or one of its .kexp files) and return an engine for it.

    "auto" takes the native engine when it knows the architecture, else mlx; on Apple Silicon, where
    mlx has a GPU, always mlx. Raises RunError for a choice that cannot work, `formats.KexpError`
    for a missing or damaged container.
    """
    # Imported here: containers and both engines are built on the names of this room.
    from kandiga_run.container import Model

    options = EngineOptions(
        residency,
        memory_bytes,
        num_experts_per_token,
        check,
        num_threads,
        num_readers,
        kv_dtype,
        state_tokens,
        arithmetic,
        kv,
        kv_qjl,
        kv_protect,
    )
    model = Model.open(path, check)
    try:
        if engine == "auto":
            native = model.architecture in NATIVE_ARCHITECTURES and not has_apple_gpu()
            engine = "native" if native else "mlx"
        open_engine = _open_native if engine == "native" else _open_mlx
        with model.files.used():
            return open_engine(model, options)
    except BaseException:
        model.close()
        raise


def _open_native(model: Model, options: EngineOptions) -> Engine:
    if model.architecture not in NATIVE_ARCHITECTURES:
        raise RunError(
            f"the native engine does not know the architecture {model.architecture!r} (it knows "
            f"{', '.join(NATIVE_ARCHITECTURES)}); use --engine mlx"
        )
    from kandiga_run.native.engine import NativeEngine

    return NativeEngine(model, options)


def _open_mlx(model: Model, options: EngineOptions) -> Engine:
    try:
        from kandiga_run.mlx_engine.engine import MlxEngine
    except ImportError as error:
        raise RunError(f"the mlx engine needs mlx and mlx-lm: {error}") from error

    return MlxEngine(model, options)


def has_apple_gpu() -> bool:
    """Whether mlx computes on a GPU here."""
    return sys.platform == "darwin" and platform.machine() == "arm64"
