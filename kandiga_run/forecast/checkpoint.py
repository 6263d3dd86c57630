"""The shape of a checkpoint, from the headers of its safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats.constants import BLOCK_ALIGN, TENSOR_ALIGN, round_up
from kandiga_run.config import Config
from kandiga_run.errors import RunError
from kandiga_run.forecast.dense import OTHER_MODELS, dense_bytes
from kandiga_run.forecast.shape import (
    Download,
    ExpertLayer,
    ModelShape,
    language_config,
    sequence_shape,
    top_k_of,
)

MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_PROJECTIONS = r"(?:gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2)"
# As mlx-lm writes them: one tensor for all experts of a layer.
_STACKED = re.compile(rf".+\.{_PROJECTIONS}\.(?:weight|scales|biases|bias|global_scale)")
# As most publishers do: tensors of each expert, or stacks that are parameters of a module.
_EACH = re.compile(r"(?P<prefix>.+\.experts)\.(?P<expert>\d+)\..+")
_PARAMETER = re.compile(r".+\.experts\.\w+")


@dataclass(frozen=True)
class TensorSize:
    """A tensor in a checkpoint."""

    shape: tuple[int, ...]
    num_bytes: int


def parse_header(text: bytes, where: str) -> dict[str, TensorSize]:
    """Return the tensors of a safetensors file from the JSON of its header. RunError."""
    try:
        entries = json.loads(text)
        return {
            name: TensorSize(
                tuple(int(size) for size in entry["shape"]),
                int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise RunError(f"{where}: its header is not that of a safetensors file") from error


def read_header(path: Path) -> dict[str, TensorSize]:
    """Return the tensors of a file on this machine. RunError, OSError."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise RunError(f"{path}: not a safetensors file")
        return parse_header(stream.read(length), str(path))


def checkpoint_shape(
    name: str,
    tensors: Mapping[str, TensorSize],
    config: dict[str, Any],
    *,
    kind: str,
    file_sizes: Iterable[int] = (),
) -> ModelShape:
    """Return the shape of a checkpoint with these tensors.

    kind: as in `ModelShape`. file_sizes: of its weight files, in bytes; of none when they are here.
    RunError when it has no routed experts, or the config does not say enough.
    """
    text = language_config(config)
    architecture = Config(config).text("model_type")
    experts = _expert_tensors(tensors, text.positive("num_hidden_layers"))
    if not experts:
        raise RunError(
            f"{name}: no routed experts among its {len(tensors)} tensors; Kandiga runs mixtures of "
            "experts"
        )
    dense = {tensor: size.num_bytes for tensor, size in tensors.items() if tensor not in experts}
    layers: dict[int, list[tuple[str, TensorSize]]] = {}
    for tensor in experts:
        layers.setdefault(_layer(tensor), []).append((tensor, tensors[tensor]))
    is_stacked = any(_STACKED.fullmatch(tensor) and not _EACH.match(tensor) for tensor in experts)
    sizes = list(file_sizes)
    return ModelShape(
        name=name,
        kind=kind,
        architecture=architecture,
        top_k=top_k_of(text),
        layers=tuple(_expert_layer(layers[layer]) for layer in sorted(layers)),
        dense=dense_bytes(dense, text),
        sequence=sequence_shape(text, architecture),
        hidden_size=text.positive("hidden_size"),
        vocab_size=text.positive("vocab_size"),
        context_length=(
            text.positive("max_position_embeddings") if "max_position_embeddings" in text else None
        ),
        download=Download(sum(sizes), max(sizes), is_streamed=is_stacked) if sizes else None,
        notes=_notes(config, is_stacked=is_stacked),
    )


def _notes(config: dict[str, Any], *, is_stacked: bool) -> tuple[str, ...]:
    if "quantization" in config or "quantization_config" in config:
        return ()
    return (
        "the weights are not quantized: `kandiga-pack convert --quantize 4` makes all of this "
        "about 3.5 times smaller",
    )


def _layer(name: str) -> int:
    match = _LAYER.search(name)
    return int(match[1]) if match else -1


def _expert_tensors(tensors: Mapping[str, TensorSize], num_layers: int) -> set[str]:
    """Return the tensors of routed experts, those of other models in the checkpoint left out."""
    # A vector of an expert has no third dimension: it goes with the weight beside it.
    stacks = {
        name.rpartition(".")[0].rpartition(".")[0]
        for name, size in tensors.items()
        if _STACKED.fullmatch(name) and name.endswith(".weight") and len(size.shape) == 3
    }
    return {
        name
        for name in tensors
        if 0 <= _layer(name) < num_layers
        and not OTHER_MODELS.search(name)
        and (
            (_STACKED.fullmatch(name) and name.rpartition(".")[0].rpartition(".")[0] in stacks)
            or _EACH.fullmatch(name)
            or (_PARAMETER.fullmatch(name) and len(tensors[name].shape) >= 2)
        )
    }


def _expert_layer(tensors: list[tuple[str, TensorSize]]) -> ExpertLayer:
    """Return a layer from all tensors of its experts."""
    each = [match for name, _ in tensors if (match := _EACH.fullmatch(name))]
    if each:
        num_experts = 1 + max(int(match["expert"]) for match in each)
        parts = [size.num_bytes for (name, size) in tensors if ".experts.0." in name]
    else:
        num_experts = max(size.shape[0] for _, size in tensors)
        parts = [size.num_bytes // num_experts for _, size in tensors]
    aligned = sum(round_up(part, TENSOR_ALIGN) for part in parts)
    return ExpertLayer(num_experts, round_up(aligned, BLOCK_ALIGN), sum(parts))
