"""The container's metadata: what is recorded of a checkpoint beside its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kandiga_pack import families, spelling
from kandiga_pack.errors import PackError
from kandiga_pack.sources.base import Source, TensorInfo
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted import ConvertedSource
from kandiga_pack.stacks import ExpertStack


def make_metadata(
    source: Source,
    stacks: Sequence[ExpertStack],
    dense: Sequence[TensorInfo],
) -> dict[str, Any]:
    """Return the container's META: integers and strings only, no clock, host or path.

    The digests of the source's files, in source.files, are left to be filled in.
    """
    config = source.config
    meta: dict[str, Any] = {
        "architecture": config["model_type"],
        "layers": [
            {"layer": stack.layer, "prefix": stack.prefix, "num_experts": stack.num_experts}
            for stack in stacks
        ],
        "top_k": _top_k(source),
        "activation": families.activation(config),
        "hidden_size": _hidden_size(config, stacks),
        "quantization": _without_floats(config.get("quantization")),
        "source": {
            "repository": source.repository,
            "revision": source.revision,
            "files": {},
        },
        "tensors": _tensors_by_file(source.tensors),
        "counts": {
            "layers": len(stacks),
            "experts": sum(stack.num_experts for stack in stacks),
            "tensors": len(source.tensors),
            "dense_tensors": len(dense),
        },
    }
    if isinstance(source, CheckpointSource):
        meta["headers"] = spelling.record_headers(source)
        meta["index"] = spelling.record_index(source)
    else:
        meta["headers"] = {}
        meta["index"] = spelling.mlx_index(source.tensors)
    if isinstance(source, ConvertedSource):
        meta["conversion"] = source.settings
    return meta


def _top_k(source: Source) -> int:
    top_k = families.top_k(source.config)
    if top_k is None:
        raise PackError(
            f"{source.name}: config.json does not state how many experts a token uses (looked for "
            f"{', '.join(families.TOP_K_KEYS)})"
        )
    return top_k


def _hidden_size(config: Mapping[str, Any], stacks: Sequence[ExpertStack]) -> int:
    stated = families.hidden_sizes(config)
    if stated:
        return next(iter(stated.values()))
    last = next(p for p in stacks[0].parts if p.part.key in {("down", "weight"), ("fc2", "weight")})
    return last.part.shape[0]


def _tensors_by_file(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for info in tensors.values():
        files.setdefault(info.file, []).append(info.name)
    return files


def _without_floats(value: Any) -> Any:
    """Return a JSON value with fractions spelled as strings, as the container's metadata wants."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: _without_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_floats(item) for item in value]
    return value
