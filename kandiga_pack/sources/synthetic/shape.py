"""The tensors of a model, from its config alone: mlx-lm builds it, and nothing is evaluated."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kandiga_pack import families
from kandiga_pack.errors import PackError, UsageError
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.converted.arrays import cast_like_mlx_lm, tensor_infos
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.sources.synthetic.values import Matrix

Config = dict[str, Any]

# Of other models inside the checkpoint, which mlx-lm leaves out, and of another tokenizer.
_LEFT_OUT = (
    "audio_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization",
    "quantization_config",
    "vision_config",
)


@dataclass(frozen=True)
class Shape:
    """What a model consists of.

    config: config.json as mlx_lm.convert would write it.
    tensors: every tensor, in mlx-lm's order.
    matrices: path of each quantized module.
    """

    config: Config
    tensors: Mapping[str, TensorInfo]
    matrices: Mapping[str, Matrix]


def trimmed(config: Mapping[str, Any], num_layers: int | None) -> Config:
    """Return a copy of a published config without what goes with other weights, and with fewer
    layers.

    Args:
        num_layers: keep the first so many; lists with an entry a layer get shorter, too.

    Raises:
        UsageError: there are not so many layers.
    """
    kept = _kept(config)
    if num_layers is None:
        return kept
    had = families.num_layers(kept)
    if had is None or not 1 <= num_layers <= had:
        has = "states no number of layers" if had is None else f"has {had} layers"
        raise UsageError(f"--layers {num_layers}: the model {has}")
    for scope in (kept, *(kept.get(key) for key in families.NESTED_CONFIGS)):
        if isinstance(scope, dict):
            _keep_layers(scope, had, num_layers)
    return kept


def _kept(config: Mapping[str, Any]) -> Config:
    kept = copy.deepcopy({key: value for key, value in config.items() if key not in _LEFT_OUT})
    for key in families.NESTED_CONFIGS:
        if isinstance(nested := kept.get(key), dict):
            kept[key] = _kept(nested)
    return kept


def _keep_layers(scope: Config, had: int, num_layers: int) -> None:
    for key, value in scope.items():
        is_pattern = isinstance(value, str) and key.endswith("_pattern")
        if (isinstance(value, list) or is_pattern) and len(value) == had:
            scope[key] = value[:num_layers]
        elif key in families.NUM_LAYERS_KEYS and value == had:
            scope[key] = num_layers


def make_shape(config: Config, quantization: Quantization | None, *, where: str) -> Shape:
    """Return the tensors of the model that mlx-lm makes of a config.

    Args:
        config: from `trimmed`.
        quantization: affine; routers and the like get what the family's predicate asks for. None
            leaves every weight in bf16.
        where: the config's name, for messages.

    Raises:
        PackError: mlx-lm does not make a model of it.
    """
    try:
        model, config = _build(config, quantization)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise PackError(
            f"{where}: mlx-lm makes no model of this config ({type(error).__name__}: "
            f"{reason[:200]})"
        ) from error
    from mlx.utils import tree_flatten

    matrices = {
        path: Matrix(module.scales.shape[-1] * module.group_size, module.bits)
        for path, module in model.named_modules()
        if "scales" in module
    }
    return Shape(config, tensor_infos(dict(tree_flatten(model.parameters()))), matrices)


def _build(config: Config, quantization: Quantization | None) -> tuple[Any, Config]:
    import mlx.core as mx
    from mlx.utils import tree_map_with_path
    from mlx_lm.utils import _get_classes, quantize_model

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(copy.deepcopy(config)))
    may_cast = getattr(model, "cast_predicate", lambda _name: True)
    cast = partial(cast_like_mlx_lm, dtype=mx.bfloat16, may_cast=may_cast)
    model.update(tree_map_with_path(cast, model.parameters()))
    if quantization is None:
        return model, config
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its bits per weight
        model, config = quantize_model(
            model,
            config,
            quantization.group_size,
            quantization.bits,
            quant_predicate=_fitting(model, quantization),
        )
    return model, config


def _fitting(model: Any, quantization: Quantization) -> Any:
    """Return the family's predicate, with the group size asked for where its own is too wide.

    Published rows hold the groups of 64 that predicates ask for; those of a tiny config may not.
    """
    predicate = getattr(model, "quant_predicate", None)
    if predicate is None:
        return None

    def fitting(path: str, module: Any) -> Any:
        asked = predicate(path, module)
        if isinstance(asked, dict) and module.weight.shape[-1] % asked.get("group_size", 1):
            return {**asked, "group_size": quantization.group_size}
        return asked

    return fitting
