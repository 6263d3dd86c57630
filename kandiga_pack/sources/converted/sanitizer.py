"""mlx-lm's `sanitize`, run for a few experts at a time with everything else left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cached_property
from typing import Any

from kandiga_pack import families
from kandiga_pack.errors import PackError
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted.arrays import placeholder
from kandiga_pack.sources.converted.published import ExpertTensor


class Sanitizer:
    """A model told that it has `chunk_size` experts, for its `sanitize`.

    `sanitize` looks at names and shapes of the whole checkpoint, so it is given a placeholder for
    every tensor that is not at hand. Placeholders are never evaluated: they hold no memory.

    Args:
        inner: the published checkpoint.
        experts: its tensors of routed experts.
        num_experts: how many it has.
        chunk_size: how many it is told to have.
    """

    def __init__(
        self,
        inner: CheckpointSource,
        experts: Mapping[int, list[ExpertTensor]],
        num_experts: int,
        chunk_size: int,
    ) -> None:
        self._model = _model_of(inner, num_experts, chunk_size)
        self._placeholders = _make_placeholders(inner, experts, chunk_size)

    def run(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters that come of `loaded` and placeholders for the rest, lazily."""
        outputs: dict[str, Any] = self._model.sanitize({**self._placeholders, **loaded})
        return outputs

    @cached_property
    def unchanged(self) -> dict[str, str]:
        """{parameter: published tensor} of those that `sanitize` hands through untouched."""
        names = {id(array): name for name, array in self._placeholders.items()}
        return {
            parameter: names[id(array)]
            for parameter, array in self.run({}).items()
            if id(array) in names
        }


def _make_placeholders(
    inner: CheckpointSource, experts: Mapping[int, list[ExpertTensor]], chunk_size: int
) -> dict[str, Any]:
    by_name = {source.info.name: source for sources in experts.values() for source in sources}
    placeholders = {}
    for name, info in inner.tensors.items():
        shape = info.shape
        if (source := by_name.get(name)) is not None:
            if source.expert is None:
                shape = (chunk_size, *shape[1:])
            elif source.expert >= chunk_size:
                continue
        placeholders[name] = placeholder(shape, info.dtype)
    return placeholders


def _model_of(inner: CheckpointSource, num_experts: int, chunk_size: int) -> Any:
    """Return a model object for its `sanitize`, told that it has `chunk_size` experts.

    The count is changed after construction: some classes build a dense layer, or refuse, when
    their config has so few experts.
    """
    from mlx_lm.utils import _get_classes, load_config

    config = load_config(inner.path)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    for args in _config_objects(model):
        for key in families.NUM_EXPERTS_KEYS:
            if isinstance(args, dict):
                if args.get(key) == num_experts:
                    args[key] = chunk_size
            elif getattr(args, key, None) == num_experts:
                setattr(args, key, chunk_size)
    if not hasattr(model, "sanitize"):
        raise PackError(f"{inner.name}: mlx-lm's {config['model_type']} has no sanitize")
    return model


def _config_objects(model: Any) -> Iterator[Any]:
    """Yield every config object that the modules of a model hold, nested ones included."""
    pending = [
        value
        for _, module in model.named_modules()
        for key in ("args", "config")
        if (value := getattr(module, key, None)) is not None
    ]
    seen: set[int] = set()
    while pending:
        item = pending.pop()
        if id(item) in seen or not (is_dataclass(item) or isinstance(item, dict)):
            continue
        seen.add(id(item))
        yield item
        for key in families.NESTED_CONFIGS:
            nested = item.get(key) if isinstance(item, dict) else getattr(item, key, None)
            if nested is not None:
                pending.append(nested)
