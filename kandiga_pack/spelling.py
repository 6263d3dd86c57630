"""How a checkpoint's headers and index were spelled, so that `export` can write the same bytes.

A safetensors header is JSON, and its writers differ in the order of keys and in padding. Few styles
exist; the one used is recorded as data, tried at once, and dropped if it does not reproduce the
header byte for byte. Without a record `export` writes mlx's style: equal tensors in unequal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from formats import dtypes
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.safetensors_file import SafetensorsFile

# Strings in the container's metadata end at 4 KiB.
_MAX_STRING_BYTES = 4096

_MLX_STYLE: dict[str, Any] = {
    "fields": ["data_offsets", "dtype", "shape"],
    "order": "name",
    "padding": 0,
    "metadata": [["format", "mlx"]],
}
_MLX_INDEX: dict[str, Any] = {"indent": 4, "order": "name", "end": "", "metadata": []}
# (indent, order of weight_map, what follows the last brace): mlx-lm, then transformers.
_INDEX_STYLES = ((4, "name", ""), (2, "name", "\n"), (2, "file", "\n"), (2, "file", ""))


def record_headers(source: CheckpointSource) -> dict[str, dict[str, Any]]:
    """Return, for each shard whose header can be spelled again exactly, its style."""
    styles = {}
    for name, shard in source.shards.items():
        style = _style_of(shard)
        if style is not None:
            styles[name] = style
    return styles


def spell_header(tensors: Sequence[TensorInfo], style: Mapping[str, Any] | None) -> bytes:
    """Return the start of a safetensors file, length field included.

    Args:
        tensors: in the order of their bytes.
        style: as recorded; None for mlx's.
    """
    style = style or _MLX_STYLE
    entries: dict[str, Any] = {}
    offset = 0
    for info in tensors:
        end = offset + info.length_bytes
        facts = {
            "dtype": dtypes.to_safetensors(info.dtype),
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        entries[info.name] = {field: facts[field] for field in style["fields"]}
        offset = end
    metadata = {"__metadata__": dict(style["metadata"])} if style["metadata"] else {}
    if style["order"] == "name":
        document = dict(sorted({**entries, **metadata}.items()))
    else:
        document = {**metadata, **entries}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * int(style["padding"])
    return len(text).to_bytes(8, "little") + text


def _style_of(shard: SafetensorsFile) -> dict[str, Any] | None:
    document = json.loads(shard.header)
    document.pop("__metadata__", None)
    entry: dict[str, Any] = next(iter(document.values()), {})
    style = {
        "fields": list(entry),
        "order": "name" if list(document) == sorted(document) else "file",
        "padding": len(shard.header) - len(shard.header.rstrip(b" ")),
        "metadata": [list(item) for item in shard.metadata.items()],
    }
    fits = all(
        len(text.encode()) <= _MAX_STRING_BYTES for item in shard.metadata.items() for text in item
    )
    if not fits or set(entry) != {"dtype", "shape", "data_offsets"}:
        return None
    for order in (style["order"], "file"):
        style["order"] = order
        if spell_header(list(shard.tensors.values()), style)[8:] == shard.header:
            return style
    return None


def record_index(source: CheckpointSource) -> dict[str, Any] | None:
    """Return the style of the index file; None when there is none, mlx's when it is unknown."""
    if source.index_text is None:
        return None
    metadata = json.loads(source.index_text).get("metadata") or {}
    weight_map = {info.name: info.file for info in source.tensors.values()}
    if all(isinstance(value, int | str | bool) for value in metadata.values()):
        for indent, order, end in _INDEX_STYLES:
            style = {
                "indent": indent,
                "order": order,
                "end": end,
                "metadata": [list(item) for item in metadata.items()],
            }
            if spell_index(weight_map, style) == source.index_text:
                return style
    total = metadata.get("total_size")
    known = [["total_size", int(total)]] if isinstance(total, int | float) else []
    return {**_MLX_INDEX, "metadata": known}


def mlx_index(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Return the style of the index that mlx-lm would write."""
    total = sum(info.length_bytes for info in tensors.values())
    return {**_MLX_INDEX, "metadata": [["total_size", total]]}


def spell_index(weight_map: Mapping[str, str], style: Mapping[str, Any]) -> str:
    """Return the text of model.safetensors.index.json.

    Args:
        weight_map: tensor -> shard; its order counts where the style says "file".
        style: as recorded.
    """
    ordered = dict(sorted(weight_map.items())) if style["order"] == "name" else dict(weight_map)
    document = {"metadata": dict(style["metadata"]), "weight_map": ordered}
    return json.dumps(document, indent=style["indent"]) + str(style["end"])
