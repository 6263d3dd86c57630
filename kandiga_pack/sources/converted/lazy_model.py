"""mlx_lm.convert up to the point where it writes: a model with nothing evaluated."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import partial
from typing import Any

from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted.arrays import cast_like_mlx_lm
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.stacks import PROJECTIONS


@dataclass(slots=True)
class LazyModel:
    """A model as mlx-lm would save it, with nothing evaluated.

    parameters: every tensor to be written, in mlx-lm's order.
    quantized_here: path of a module -> (group_size, bits, mode) to apply to its weight. Modules
        that were packed when they were published are not in it.
    expert_paths: paths of the expert projections.
    cast: dtype to which floating tensors are cast first, None to leave them.
    """

    config: dict[str, Any]
    parameters: dict[str, Any]
    keep_vision_config: bool
    cast: Any
    may_cast: Any
    quantized_here: dict[str, tuple[int, int, str]]
    expert_paths: frozenset[str]


def load_as_mlx_lm_converts(
    inner: CheckpointSource, quantization: Quantization | None
) -> LazyModel:
    """Follow mlx_lm.convert up to the point where it writes."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map_with_path
    from mlx_lm.convert import MODEL_CONVERSION_DTYPES
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
    from mlx_lm.utils import load_model, quantize_model

    model, config = load_model(inner.path, lazy=True)
    stated = config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    cast = getattr(mx, str(stated)) if stated in MODEL_CONVERSION_DTYPES else None
    may_cast = getattr(model, "cast_predicate", lambda _name: True)
    if cast is not None:
        cast_all = partial(cast_like_mlx_lm, dtype=cast, may_cast=may_cast)
        model.update(tree_map_with_path(cast_all, model.parameters()))
    packed_at_load = {path for path, module in model.named_modules() if "scales" in module}
    if quantization is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its bits per weight
            model, config = quantize_model(
                model,
                config,
                quantization.group_size,
                quantization.bits,
                mode=quantization.mode,
            )
    return LazyModel(
        config=config,
        parameters=dict(tree_flatten(model.parameters())),
        keep_vision_config="vision_tower" in getattr(model, "model", {}),
        cast=cast,
        may_cast=may_cast,
        quantized_here={
            path: (module.group_size, module.bits, module.mode)
            for path, module in model.named_modules()
            if "scales" in module and path not in packed_at_load
        },
        expert_paths=frozenset(
            path
            for path, module in model.named_modules()
            if isinstance(module, SwitchLinear | QuantizedSwitchLinear)
            and path.rpartition(".")[2] in PROJECTIONS
        ),
    )
