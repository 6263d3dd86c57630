"""What is in a container, without reading its weights or, of a published one, fetching them."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from formats import KexpSet, Layout, open_set
from formats.hub import HubFiles, HubId, is_offline
from formats.published import fetch_set, published_id
from formats.remote_index import fetch_index


def inspect(path: str | Path) -> dict[str, Any]:
    """Return the facts about a container, or a published one's id, as JSON values; sizes in bytes.

    `layouts` has one entry for each distinct shape of expert, with the layers that use it.
    `bytes_per_token` is what a token needs at the model's own top_k: the blocks of its experts,
    read from disk if they are not in memory, and all dense weights. `published` says, for an id,
    which commit was looked at and what was fetched for that.

    Raises:
        KexpError: the container is damaged or missing.
        formats.hub.HubError: the Hub does not give it.
    """
    hub_id = published_id(path)
    if hub_id is not None:
        return _inspect_published(hub_id)
    with open_set(path) as opened:
        return _facts(opened)


def _inspect_published(hub_id: HubId) -> dict[str, Any]:
    if is_offline():
        with open_set(fetch_set(hub_id)) as opened:
            return {**_facts(opened), "path": str(hub_id)}
    files = HubFiles(hub_id)
    with tempfile.TemporaryDirectory(prefix="kandiga-index-") as folder:
        fetch_index(files, Path(folder))
        with open_set(folder) as opened:
            facts = _facts(opened)
    fetched = {"commit": files.commit, "requests": files.num_requests, "bytes": files.num_bytes}
    return {**facts, "path": str(hub_id), "published": fetched}


def _facts(opened: KexpSet) -> dict[str, Any]:
    meta = opened.meta
    blocks = {layer: opened.layout(layer).block_bytes for layer in opened.layers}
    experts_bytes = sum(opened.num_experts(layer) * blocks[layer] for layer in opened.layers)
    dense_bytes = sum(tensor.length_bytes for tensor in opened.dense.values())
    top_k = meta["top_k"]
    return {
        "path": str(opened.path),
        "architecture": meta["architecture"],
        "hidden_size": meta["hidden_size"],
        "activation": meta["activation"],
        "top_k": top_k,
        "expert_layers": list(opened.layers),
        "num_experts": sum(opened.num_experts(layer) for layer in opened.layers),
        "experts_per_layer": sorted({opened.num_experts(layer) for layer in opened.layers}),
        "experts_bytes": experts_bytes,
        "dense_tensors": len(opened.dense),
        "dense_bytes": dense_bytes,
        "bytes_per_token": {"experts": top_k * sum(blocks.values()), "dense": dense_bytes},
        "quantization": meta["quantization"],
        "layouts": _layouts(opened),
        "dense_dtypes": dict(sorted(Counter(t.dtype for t in opened.dense.values()).items())),
        "shards": [{"name": shard.path.name, "size": shard.size_bytes} for shard in opened.shards],
        "source": meta["source"],
        "conversion": meta.get("conversion"),
        "set_root": opened.manifest.set_root,
    }


def _layouts(opened: KexpSet) -> list[dict[str, Any]]:
    layers: dict[Layout, list[int]] = {}
    for layer in opened.layers:
        layers.setdefault(opened.layout(layer), []).append(layer)
    return [
        {
            "layers": used_by,
            "block_bytes": layout.block_bytes,
            "payload_bytes": layout.payload_bytes,
            "parts": [asdict(part) for part in layout.parts],
        }
        for layout, used_by in layers.items()
    ]
