"""Any checkpoint mlx-lm can load, presented as `mlx_lm.convert` would have written it, in slices.

mlx-lm does all of the work that differs between families: its model class builds the parameters,
its `sanitize` renames, splits and transposes the published tensors, its quantizer decides what is
quantized and how. All of that is lazy in MLX, so it costs no memory until a tensor is evaluated.
Dense tensors are evaluated one at a time. Expert stacks never are: MLX would evaluate a whole stack
to give one expert. Instead `sanitize` runs on a few experts at a time, on a model object that is
told it has only so many.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kandiga_pack import families
from kandiga_pack.errors import PackError
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.stacks import OTHER_MODELS, PROJECTIONS, layer_number

# Source bytes of the experts that are converted together.
CHUNK_BYTES = 64 << 20

_PER_EXPERT = re.compile(r"(?P<head>.+\.(?:experts|mlp))\.(?P<expert>\d+)\.(?P<tail>.+)")
_STACKED = re.compile(r"\.(?:experts|switch_mlp|switch_glu|moe|block_sparse_moe)\.")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What to quantize to; None means mlx-lm's default for the mode."""

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"

    def as_settings(self) -> dict[str, Any]:
        """Return what the container records, for `from_settings`."""
        return {"bits": self.bits, "group_size": self.group_size, "mode": self.mode}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None) -> Quantization | None:
        """Return the quantization a container was made with, None if it was packed as it is."""
        return cls(**settings) if settings else None


@dataclass(slots=True)
class _LazyModel:
    """A model as mlx-lm would save it, with nothing evaluated.

    parameters: every tensor to be written, in mlx-lm's order.
    quantized_here: path of an expert projection -> (group_size, bits, mode) to apply to it.
    cast: dtype to which floating tensors are cast first, None to leave them.
    """

    config: dict[str, Any]
    parameters: dict[str, Any]
    keep_vision_config: bool
    cast: Any
    may_cast: Any
    quantized_here: dict[str, tuple[int, int, str]]
    expert_paths: frozenset[str]


@dataclass(frozen=True, slots=True)
class _ExpertTensor:
    """A published tensor that holds weights of routed experts.

    expert: the expert of a tensor of its own, None for a stack along axis 0.
    template: the name with `{}` in place of the expert number.
    """

    info: TensorInfo
    expert: int | None
    template: str


@dataclass(slots=True)
class _Chunk:
    """The experts of a layer converted last: tensors (count, ...) from expert `first` on."""

    layer: int = -1
    first: int = 0
    count: int = 0
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


class ConvertedSource:
    """A `base.Source` over a checkpoint folder in any layout mlx-lm loads.

    Args:
        inner: the folder.
        quantization: quantize to this while reading; None keeps the numbers as they are.

    Raises:
        PackError: mlx-lm cannot load the checkpoint, or its experts cannot be taken one by one.
    """

    def __init__(self, inner: CheckpointSource, quantization: Quantization | None) -> None:
        self._inner = inner
        self._quantization = quantization
        self.name, self.path = inner.name, inner.path
        self.repository, self.revision = inner.repository, inner.revision
        _refuse_what_cannot_stream(inner, quantization)
        self._model = self._load()
        self._folder = Path(tempfile.mkdtemp(prefix="kandiga-pack-"))
        try:
            self.config = self._write_config()
            self.tensors = _tensor_infos(self._model.parameters)
            self._experts = _ExpertConverter(inner, self._model, self.tensors)
        except BaseException:
            self.close()
            raise

    @property
    def settings(self) -> dict[str, Any]:
        """What the container records of the conversion, {} when only the layout changed."""
        return self._quantization.as_settings() if self._quantization else {}

    @property
    def files(self) -> Sequence[Path]:
        """The folder's files, with config.json as mlx-lm would write it."""
        others = [path for path in self._inner.files if path.name != "config.json"]
        return sorted([*others, self._folder / "config.json"], key=lambda path: path.name)

    @property
    def notes(self) -> Sequence[str]:
        """What the folder's own notes say, and what mlx-lm does not load."""
        dropped = [
            name
            for name in self._inner.tensors
            if OTHER_MODELS.search(name) and name not in self.tensors
        ]
        lines = list(self._inner.notes)
        if dropped:
            lines.append(
                f"left out, as mlx_lm.convert does: {len(dropped)} tensors of vision, audio or "
                f"prediction heads, such as {dropped[0]}"
            )
        return lines

    @property
    def weight_files(self) -> Mapping[str, Path]:
        """The published shards."""
        return self._inner.weight_files

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows of axis 0; see base.Source.read. Reading in order of rows is fastest."""
        info = self.tensors[name]
        if name.rpartition(".")[0] in self._model.expert_paths:
            stop = info.shape[0] if num_rows is None else start_row + num_rows
            return self._experts.read(name, start_row, stop)
        array = self._evaluated(name)
        if not info.shape:
            return array
        return array[start_row : None if num_rows is None else start_row + num_rows]

    def close(self) -> None:
        """Remove the temporary folder and close the shards."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._inner.close()

    def _evaluated(self, name: str) -> np.ndarray:
        """Return a dense tensor whole, keeping it until another one is asked for."""
        import mlx.core as mx

        if name != self._evaluated_name:
            # An evaluated array forgets how it was made, so one that was let go needs a new model.
            if name not in self._model.parameters:
                self._model.parameters = self._load().parameters
            self._evaluated_array = None
            array = self._model.parameters.pop(name)
            mx.eval(array)
            self._evaluated_name, self._evaluated_array = name, _to_numpy(array)
        assert self._evaluated_array is not None
        return self._evaluated_array

    _evaluated_name: str | None = None
    _evaluated_array: np.ndarray | None = None

    def _load(self) -> _LazyModel:
        try:
            return _load_as_mlx_lm_converts(self._inner, self._quantization)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise PackError(
                f"{self.name}: mlx-lm cannot load this checkpoint "
                f"({type(error).__name__}: {reason[:200]})"
            ) from error

    def _write_config(self) -> dict[str, Any]:
        from mlx_lm.utils import save_config

        path = self._folder / "config.json"
        save_config(self._model.config, path, keep_vision_config=self._model.keep_vision_config)
        config: dict[str, Any] = json.loads(path.read_text())
        return config


def _refuse_what_cannot_stream(inner: CheckpointSource, quantization: Quantization | None) -> None:
    config = inner.config
    if quantization is not None and isinstance(config.get("quantization"), dict):
        raise PackError(
            f"{inner.name}: already quantized; leave --quantize out to pack it as it is"
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method in ("awq", "gptq"):
        raise PackError(
            f"{inner.name}: {method} weights cannot be converted in slices; run "
            f"`mlx_lm.convert --hf-path {inner.name} --mlx-path OUT` and pack OUT"
        )
    if config.get("model_file") is not None:
        raise PackError(
            f"{inner.name}: config.json asks for Python code of its own "
            f"({config['model_file']}), which is not run; convert it with mlx_lm.convert and "
            "pack the result"
        )


def _load_as_mlx_lm_converts(
    inner: CheckpointSource, quantization: Quantization | None
) -> _LazyModel:
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
        model.update(
            tree_map_with_path(
                lambda name, value: _cast(name, value, cast, may_cast), model.parameters()
            )
        )
    packed_at_load = {
        path for path, module in model.named_modules() if isinstance(module, QuantizedSwitchLinear)
    }
    if quantization is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its bits per weight
            model, config = quantize_model(
                model,
                config,
                quantization.group_size,
                quantization.bits,
                mode=quantization.mode,
            )
    projections = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, SwitchLinear | QuantizedSwitchLinear)
        and path.rpartition(".")[2] in PROJECTIONS
    }
    return _LazyModel(
        config=config,
        parameters=dict(tree_flatten(model.parameters())),
        keep_vision_config="vision_tower" in getattr(model, "model", {}),
        cast=cast,
        may_cast=may_cast,
        quantized_here={
            path: (module.group_size, module.bits, module.mode)
            for path, module in projections.items()
            if isinstance(module, QuantizedSwitchLinear) and path not in packed_at_load
        },
        expert_paths=frozenset(projections),
    )


class _ExpertConverter:
    """Converts the experts of one layer, a few at a time."""

    def __init__(
        self, inner: CheckpointSource, model: _LazyModel, tensors: Mapping[str, TensorInfo]
    ) -> None:
        self._inner = inner
        self._model = model
        self._wanted = _by_layer(model, tensors)
        self._num_experts = _num_experts(model, tensors, inner.name)
        self._sources = _expert_tensors(inner, self._num_experts)
        self._chunk_size = self._choose_chunk_size()
        self._sanitizer = _model_of(inner, self._num_experts, self._chunk_size)
        self._placeholders = self._make_placeholders()
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

        outputs = self._sanitizer.sanitize({**self._placeholders, **self._load(layer, first)})
        arrays: dict[str, Any] = {}
        for path in {name.rpartition(".")[0] for name in self._wanted[layer]}:
            arrays |= self._finish(path, outputs)
        self._check(arrays, layer)
        mx.eval(arrays)
        return {name: _to_numpy(array) for name, array in arrays.items()}

    def _finish(self, path: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Cast, then quantize, as mlx-lm does with a whole stack: groups never leave their row."""
        import mlx.core as mx

        found = {
            name: _cast(name, outputs[name], self._model.cast, self._model.may_cast)
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

    def _check(self, arrays: Mapping[str, Any], layer: int) -> None:
        for name, info in self._wanted[layer].items():
            wanted = (self._chunk_size, *info.shape[1:])
            seen = tuple(arrays[name].shape) if name in arrays else None
            if seen != wanted or _dtype_name(arrays[name].dtype) != info.dtype:
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
                loaded[source.info.name] = _to_mlx(data, source.info.dtype)
            elif first <= source.expert < first + self._chunk_size:
                data = self._inner.read(source.info.name)
                loaded[source.template.format(source.expert - first)] = _to_mlx(
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

    def _make_placeholders(self) -> dict[str, Any]:
        """Stand-ins for every published tensor: `sanitize` looks at names and shapes everywhere.

        They are never evaluated, so they hold no memory.
        """
        import mlx.core as mx

        experts = {
            source.info.name: source for sources in self._sources.values() for source in sources
        }
        placeholders = {}
        for name, info in self._inner.tensors.items():
            shape = info.shape
            if (source := experts.get(name)) is not None:
                if source.expert is None:
                    shape = (self._chunk_size, *shape[1:])
                elif source.expert >= self._chunk_size:
                    continue
            placeholders[name] = mx.zeros(shape, _mlx_dtype(info.dtype))
        return placeholders


def _by_layer(
    model: _LazyModel, tensors: Mapping[str, TensorInfo]
) -> dict[int, dict[str, TensorInfo]]:
    """Group the tensors to be written for routed experts by layer."""
    layers: dict[int, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if name.rpartition(".")[0] in model.expert_paths:
            layers.setdefault(layer_number(name), {})[name] = info
    return layers


def _num_experts(model: _LazyModel, tensors: Mapping[str, TensorInfo], where: str) -> int:
    counts = {tensors[f"{path}.weight"].shape[0] for path in model.expert_paths}
    if len(counts) != 1:
        raise PackError(
            f"{where}: mlx-lm's {model.config.get('model_type')} has "
            + (f"stacks of {sorted(counts)} experts" if counts else "no routed experts")
            + ", expected one number of experts"
        )
    return counts.pop()


def _expert_tensors(inner: CheckpointSource, num_experts: int) -> dict[int, list[_ExpertTensor]]:
    """Group the published tensors that hold routed experts by layer."""
    num_layers = families.num_layers(inner.config)
    found: dict[int, list[_ExpertTensor]] = {}
    for name, info in inner.tensors.items():
        layer = layer_number(name)
        if layer < 0 or OTHER_MODELS.search(name):
            continue
        if num_layers is not None and layer >= num_layers:
            continue
        if match := _PER_EXPERT.fullmatch(name):
            template = f"{match['head']}.{{}}.{match['tail']}"
            entry = _ExpertTensor(info, int(match["expert"]), template)
        elif _STACKED.search(name) and info.shape[:1] == (num_experts,):
            entry = _ExpertTensor(info, None, name)
        else:
            continue
        found.setdefault(layer, []).append(entry)
    if not found:
        raise PackError(
            f"{inner.name}: no expert tensors among {len(inner.tensors)}; looked for "
            "layers.N.*.experts.E.* and stacks of "
            f"{num_experts} under experts, switch_mlp, switch_glu or moe"
        )
    return found


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


def _tensor_infos(parameters: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Describe every tensor, in the shard files that mlx_lm.convert would write."""
    from mlx_lm.utils import make_shards

    shards = make_shards(dict(parameters))
    count = len(shards)
    return {
        name: TensorInfo(
            name,
            _dtype_name(array.dtype),
            tuple(array.shape),
            f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors",
        )
        for number, shard in enumerate(shards, 1)
        for name, array in shard.items()
    }


def _cast(name: str, value: Any, dtype: Any, may_cast: Any) -> Any:
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


def _mlx_dtype(name: str) -> Any:
    import mlx.core as mx

    return getattr(mx, _MLX_NAMES[name])


def _dtype_name(dtype: Any) -> str:
    spelled = str(dtype).removeprefix("mlx.core.")
    return next(
        ours for ours, mlx_name in _MLX_NAMES.items() if mlx_name.removesuffix("_") == spelled
    )


def _to_mlx(data: np.ndarray, dtype: str) -> Any:
    import mlx.core as mx

    array = mx.array(data)
    return array.view(mx.bfloat16) if dtype == "bf16" else array


def _to_numpy(array: Any) -> np.ndarray:
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False))
