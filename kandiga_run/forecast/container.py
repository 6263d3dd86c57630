"""The shape of a container, from its index."""

from __future__ import annotations

from typing import Any

from formats import KexpSet
from kandiga_run.config import Config
from kandiga_run.forecast.dense import dense_bytes
from kandiga_run.forecast.shape import (
    Download,
    ExpertLayer,
    ModelShape,
    language_config,
    sequence_shape,
)


def container_shape(
    name: str, container: KexpSet, config: dict[str, Any], *, is_published: bool
) -> ModelShape:
    """Return the shape of an opened container whose config.json is `config`.

    RunError when the config does not say what a sequence keeps.
    """
    text = language_config(config)
    architecture = Config(config).text("model_type")
    layers = []
    for layer in container.layers:
        layout = container.layout(layer)
        layers.append(
            ExpertLayer(container.num_experts(layer), layout.block_bytes, layout.payload_bytes)
        )
    sizes = {tensor: entry.length_bytes for tensor, entry in container.dense.items()}
    shard_sizes = [record.size_bytes for record in container.manifest.shards]
    return ModelShape(
        name=name,
        kind="published" if is_published else "container",
        architecture=architecture,
        top_k=int(container.meta["top_k"]),
        layers=tuple(layers),
        dense=dense_bytes(sizes, text),
        sequence=sequence_shape(text, architecture),
        hidden_size=text.positive("hidden_size"),
        vocab_size=text.positive("vocab_size"),
        context_length=_context_length(text),
        download=Download(sum(shard_sizes), max(shard_sizes)) if is_published else None,
    )


def _context_length(config: Config) -> int | None:
    key = "max_position_embeddings"
    return config.positive(key) if key in config else None
