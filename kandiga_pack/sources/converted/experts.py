"""Convert the routed experts of a layer a few at a time, through mlx-lm's own `sanitize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kandiga_pack.errors import PackError
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted.arrays import (
    cast_like_mlx_lm,
    dtype_name,
    has_nan,
    to_mlx,
    to_numpy,
)
from kandiga_pack.sources.converted.lazy_model import LazyModel
from kandiga_pack.sources.converted.published import ExpertTensor, expert_tensors
from kandiga_pack.sources.converted.sanitizer import Sanitizer
from kandiga_pack.stacks import layer_number

# Published bytes of the experts that are converted together.
CHUNK_BYTES = 32 << 20


@dataclass(slots=True)
class _Chunk:
    """The experts of a layer converted last: tensors (count, ...) from expert `first` on."""

    layer: int = -1
    first: int = 0
    count: int = 0
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


class ExpertConverter:
    """Converts the experts of one layer, a few at a time."""

    def __init__(
        self, inner: CheckpointSource, model: LazyModel, tensors: Mapping[str, TensorInfo]
    ) -> None:
        self._inner = inner
        self._model = model
        self._wanted = _by_layer(model, tensors)
        self._num_experts = _num_experts(model, tensors, inner.name)
        self._sources = _experts_of(inner, self._num_experts)
        self._chunk_size = self._choose_chunk_size()
        self.sanitizer = Sanitizer(inner, self._sources, self._num_experts, self._chunk_size)
        self._chunk = _Chunk()

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return experts [start, stop) of one stacked tensor."""
        pieces = []
        layer = layer_number(name)
        while start < stop:
            self._ensure(layer, start)
            first = start - self._chunk.first
            last = min(stop - self._chunk.first, self._chunk.count)
            pieces.append(self._chunk.tensors[name][first:last])
            start += last - first
        if not pieces:
            return self._chunk.tensors[name][:0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _ensure(self, layer: int, expert: int) -> None:
        first = expert - expert % self._chunk_size
        if (self._chunk.layer, self._chunk.first) == (layer, first) and self._chunk.count:
            return
        self._chunk = _Chunk()  # let the old one go before the new one is made
        self._chunk = _Chunk(layer, first, self._chunk_size, self._convert(layer, first))

    def _convert(self, layer: int, first: int) -> dict[str, np.ndarray]:
        import mlx.core as mx

        loaded = self._load(layer, first)
        outputs = self.sanitizer.run(loaded)
        self._check_complete(outputs, loaded, layer)
        arrays: dict[str, Any] = {}
        for path in {name.rpartition(".")[0] for name in self._wanted[layer]}:
            arrays |= self._finish(path, outputs)
        self._check(arrays, layer)
        mx.eval(arrays)
        return {name: to_numpy(array) for name, array in arrays.items()}

    def _finish(self, path: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Cast, then quantize, as mlx-lm does with a whole stack: groups never leave their row."""
        import mlx.core as mx

        found = {
            name: cast_like_mlx_lm(name, outputs[name], self._model.cast, self._model.may_cast)
            for role in ("weight", "scales", "biases", "bias", "global_scale")
            if (name := f"{path}.{role}") in outputs
        }
        if path in self._model.quantized_here and f"{path}.weight" in found:
            group_size, bits, mode = self._model.quantized_here[path]
            weight = found.pop(f"{path}.weight")
            packed = mx.quantize(weight, group_size, bits, mode=mode)
            found |= zip(
                (f"{path}.weight", f"{path}.scales", f"{path}.biases"), packed, strict=False
            )
        return found

    def _check_complete(
        self, outputs: Mapping[str, Any], loaded: Mapping[str, Any], layer: int
    ) -> None:
        """Refuse outputs made with a placeholder: they are NaN, and NaN survives arithmetic."""
        made = [outputs[name] for name in self._wanted[layer] if name in outputs]
        if has_nan(made) and not has_nan(loaded.values()):
            raise PackError(
                f"{self._inner.name}: mlx-lm converts the experts of layer {layer} with the help "
                f"of tensors that are not theirs; run `mlx_lm.convert --hf-path "
                f"{self._inner.name} --mlx-path OUT` and pack OUT"
            )

    def _check(self, arrays: Mapping[str, Any], layer: int) -> None:
        for name, info in self._wanted[layer].items():
            wanted = (self._chunk_size, *info.shape[1:])
            seen = tuple(arrays[name].shape) if name in arrays else None
            if seen != wanted or dtype_name(arrays[name].dtype) != info.dtype:
                raise PackError(
                    f"{self._inner.name}: {name}: {self._chunk_size} experts alone convert to "
                    f"{seen}, expected {wanted} {info.dtype}; run `mlx_lm.convert --hf-path "
                    f"{self._inner.name} --mlx-path OUT` and pack OUT"
                )

    def _load(self, layer: int, first: int) -> dict[str, Any]:
        """Read the published tensors of experts [first, first + chunk) of a layer."""
        loaded = {}
        for source in self._sources.get(layer, ()):
            if source.expert is None:
                data = self._inner.read(source.info.name, first, self._chunk_size)
                loaded[source.info.name] = to_mlx(data, source.info.dtype)
            elif first <= source.expert < first + self._chunk_size:
                data = self._inner.read(source.info.name)
                loaded[source.template.format(source.expert - first)] = to_mlx(
                    data, source.info.dtype
                )
        return loaded

    def _choose_chunk_size(self) -> int:
        """Return the largest divisor of the expert count whose source bytes fit CHUNK_BYTES."""
        per_expert = max(
            sum(source.info.length_bytes for source in sources) // self._num_experts
            for sources in self._sources.values()
        )
        fitting = max(1, CHUNK_BYTES // max(per_expert, 1))
        return max(
            size
            for size in range(1, self._num_experts + 1)
            if self._num_experts % size == 0 and size <= fitting
        )


def _by_layer(
    model: LazyModel, tensors: Mapping[str, TensorInfo]
) -> dict[int, dict[str, TensorInfo]]:
    """Group the tensors to be written for routed experts by layer."""
    layers: dict[int, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if name.rpartition(".")[0] in model.expert_paths:
            layers.setdefault(layer_number(name), {})[name] = info
    return layers


def _num_experts(model: LazyModel, tensors: Mapping[str, TensorInfo], where: str) -> int:
    counts = {tensors[f"{path}.weight"].shape[0] for path in model.expert_paths}
    if len(counts) != 1:
        raise PackError(
            f"{where}: mlx-lm's {model.config.get('model_type')} has "
            + (f"stacks of {sorted(counts)} experts" if counts else "no routed experts")
            + ", expected one number of experts"
        )
    return counts.pop()


def _experts_of(inner: CheckpointSource, num_experts: int) -> dict[int, list[ExpertTensor]]:
    found = expert_tensors(inner.tensors, inner.config, {num_experts})
    if not found:
        raise PackError(
            f"{inner.name}: no expert tensors among {len(inner.tensors)}; looked for "
            "layers.N.*.experts.E.* and stacks of "
            f"{num_experts} under experts, switch_mlp, switch_glu or moe"
        )
    return found
