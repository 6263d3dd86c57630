"""mlx-lm's model for a container: built by mlx-lm's own loader, from tensors that we hand it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP
from mlx_lm.utils import _get_classes, load_model

from kandiga_run.container import Model
from kandiga_run.errors import RunError
from kandiga_run.mlx_engine.dense import DenseWeights
from kandiga_run.mlx_engine.top_k import top_k_override
from kandiga_run.mlx_engine.weights import PROJECTION_MODULES, PartOf, StandIns


def build_model(model: Model, experts: StandIns, top_k: int | None) -> Any:
    """Return mlx-lm's model of a container, with dense weights and stand-ins for its experts.

    `load_model` itself does the work, so classes, key renaming, quantization of each module and
    the check for missing or unexpected tensors are mlx-lm's, whatever its version. `top_k` is the
    number of experts a token uses, None as published. RunError with mlx-lm's reason when it
    cannot.
    """
    dense = DenseWeights(model.container, model.dense_watch)

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        model_class, args_class = _get_classes(config)
        return _reading_from(model_class, dense, experts), args_class

    changes = {} if top_k is None else top_k_override(model.container.config, top_k)
    try:
        network, _ = load_model(
            model.path,
            lazy=True,  # evaluating would allocate every expert
            strict=False,  # there is no .safetensors file; the class below stays strict
            model_config=changes,
            get_model_classes=classes,
        )
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        changed = "" if top_k is None else f" with {top_k} experts a token"
        raise RunError(
            f"mlx-lm cannot build the {model.architecture} model in {model.path}{changed}: "
            f"{type(error).__name__}: {_one_line(error)}"
        ) from error
    return network


def switch_modules(model: Any) -> list[tuple[str, Any]]:
    """Return (path, module) of every module of routed experts."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, (SwitchGLU, SwitchMLP))
    ]


def layer_of(path: str, module: Any, stand_ins: StandIns) -> int:
    """Return the container's layer whose experts belong into a module of routed experts.

    RunError when mlx-lm changed the experts while loading, for then the stored blocks are not
    what the module computes with.
    """
    layers = set()
    for projection, name in PROJECTION_MODULES.items():
        for role, array in _parameters(module.get(name)):
            part = stand_ins.part_of(array)
            if part is None or part != PartOf(part.layer, projection, role):
                raise RunError(
                    f"{path}.{name}.{role}: mlx-lm rearranges the experts of this checkpoint when "
                    "it loads them; convert the checkpoint with mlx_lm.convert and pack the result"
                )
            layers.add(part.layer)
    if len(layers) != 1:
        raise RunError(
            f"{path}: experts of layers {sorted(layers)} in one module, wanted those of one layer"
        )
    return layers.pop()


def replace_module(model: Any, path: str, module: Any) -> None:
    """Put a module in the place that `path` names, such as model.layers.0.mlp.switch_mlp."""
    *parents, last = path.split(".")
    owner = model
    for name in parents:
        owner = owner[int(name)] if isinstance(owner, list) else owner[name]
    if isinstance(owner, list):
        owner[int(last)] = module
    else:
        setattr(owner, last, module)


def _one_line(error: Exception) -> str:
    # mlx lists missing and unexpected parameters one to a line, which may be thousands.
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[:4]) + (f" ... ({len(lines) - 4} more lines)" if lines[4:] else "")


def _parameters(linear: Any) -> list[tuple[str, Any]]:
    return [] if linear is None else [(k, v) for k, v in linear.items() if isinstance(v, mx.array)]


def _reading_from(model_class: Any, dense: DenseWeights, experts: StandIns) -> type:
    """Return a subclass that sanitizes and loads these weights, whatever its loader looked for."""

    def sanitized(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
        if not hasattr(model_class, "sanitize"):
            return weights
        return dict(model_class.sanitize(model, weights))

    def sanitize(self: Any, _weights: dict[str, Any]) -> dict[str, Any]:
        # First with stand-ins for everything: what is dropped (a vision tower, an MTP head) need
        # then not be read. A family that also computes with some tensors is given the real ones.
        weights = sanitized(self, {**dense.stand_ins, **experts.arrays})
        names = {key: dense.name_of(array) for key, array in weights.items()}
        if all(names[key] or experts.part_of(array) for key, array in weights.items()):
            return {
                key: array if (name := names[key]) is None else dense.read(name)
                for key, array in weights.items()
            }
        return sanitized(self, {**dense.read_all(), **experts.arrays})

    def load_weights(self: Any, pairs: Any, strict: bool = True) -> Any:
        return model_class.load_weights(self, pairs, strict=True)

    methods = {
        "__module__": model_class.__module__,
        "sanitize": sanitize,
        "load_weights": load_weights,
    }
    return type(model_class.__name__, (model_class,), methods)
