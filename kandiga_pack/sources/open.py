"""Turn what the user typed into a Source."""

from __future__ import annotations

import os
from pathlib import Path

from kandiga_pack.errors import PackError, UnreadableError, UsageError
from kandiga_pack.sources import hub
from kandiga_pack.sources.base import Source
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted import (
    ConvertedSource,
    Quantization,
    has_published_experts,
)
from kandiga_pack.stacks import has_stacks, none_found


def open_source(
    text: str | Path, *, revision: str | None = None, quantization: Quantization | None = None
) -> Source:
    """Open a checkpoint folder, a GGUF file, or a Hub id.

    A folder in a published layout (experts one by one, or fused) is presented in MLX's layout, as
    `mlx_lm.convert` would write it.

    Args:
        text: path or Hub id.
        revision: branch, tag or commit, for a Hub id only.
        quantization: quantize while reading; needs an unquantized checkpoint.

    Raises:
        UnreadableError: there is no such thing, or it cannot be read.
        PackError: it is damaged, or of no kind that can be packed.
        UsageError: an option does not go with this kind of source.
    """
    path = Path(text)
    if path.is_dir():
        _need_no_revision(revision, path)
        return _in_mlx_layout(CheckpointSource(path), quantization)
    if path.is_file():
        _need_no_revision(revision, path)
        return _open_file(path, quantization)
    if path.exists() or not hub.is_hub_id(str(text)):
        raise UnreadableError(f"{text}: no such file or folder, and not a Hub id (owner/name)")
    return _in_mlx_layout(hub.open_hub(str(text), revision=revision), quantization)


def _need_no_revision(revision: str | None, path: Path) -> None:
    if revision is not None:
        raise UsageError(f"--revision is for Hub ids, and {path} is on this machine")


def _open_file(path: Path, quantization: Quantization | None) -> Source:
    if not os.access(path, os.R_OK):
        raise UnreadableError(f"{path}: permission denied")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise PackError(
            f"{path}: not a GGUF file (starts with {magic!r}); SOURCE is a checkpoint folder, a "
            "GGUF file or a Hub id"
        )
    if quantization is not None:
        raise UsageError("--quantize needs an unquantized checkpoint folder, not a GGUF file")
    # Imported here: it pulls in the gguf package, which nothing else needs.
    from kandiga_pack.sources.gguf import GgufSource

    return GgufSource(path)


def _in_mlx_layout(source: CheckpointSource, quantization: Quantization | None) -> Source:
    try:
        if quantization is None and is_mlx_layout(source):
            return source
        _need_experts(source)
        return ConvertedSource(source, quantization)
    except BaseException:
        source.close()
        raise


def _need_experts(source: CheckpointSource) -> None:
    """Say what is missing before mlx-lm is asked, whose own message would not."""
    if not has_published_experts(source.tensors, source.config):
        raise none_found(source.tensors, source.config, source.name)


def is_mlx_layout(source: CheckpointSource) -> bool:
    """Tell a checkpoint written by mlx from one published by transformers.

    Both may hold 3-D tensors called up_proj.weight (Step 3.5 is published so), and its norms mean
    something else. transformers signs its files with the format "pt".
    """
    published = any(shard.metadata.get("format") == "pt" for shard in source.shards.values())
    if published and "quantization" not in source.config:
        return False
    return has_stacks(source.tensors, source.config)
