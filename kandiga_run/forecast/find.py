"""What a word on the command line means: a container, a checkpoint, an id on the Hub, a preset.

Of what is on the Hub only headers and indexes are fetched, by ranges of bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from formats import open_set
from formats.hub import HubFiles, HubId, hub_errors
from formats.manifest import MANIFEST_NAME
from formats.published import published_id
from formats.reader import parse_config
from formats.remote_index import fetch_index
from kandiga_run.errors import RunError
from kandiga_run.forecast.checkpoint import (
    MAX_HEADER_BYTES,
    TensorSize,
    checkpoint_shape,
    parse_header,
    read_header,
)
from kandiga_run.forecast.container import container_shape
from kandiga_run.forecast.presets import PRESETS
from kandiga_run.forecast.shape import ModelShape

_CONFIG_NAME = "config.json"
_SHARD_PATTERN = "model*.safetensors"
_MAX_CONFIG_BYTES = 16 << 20
# Headers of checkpoints with a tensor for each expert have a few megabytes.
_HEADER_GUESS_BYTES = 1 << 20
_CONNECTIONS = 8


def find_shape(text: str) -> ModelShape:
    """Return the shape of the model that `text` names.

    A path goes before a preset, a preset before an id on the Hub.

    Raises:
        RunError: there is such a thing, and it is no model of experts.
        HubError, KexpError, OSError: it is missing, damaged or cannot be reached.
    """
    path = Path(text)
    if path.exists():
        return _local(path, text)
    if text.lower() in PRESETS:
        return PRESETS[text.lower()].shape
    hub_id = published_id(text)
    if hub_id is None:
        raise RunError(
            f"{text}: no such folder, no preset (there are {', '.join(PRESETS)}) and no Hub id "
            "(user/name)"
        )
    return _remote(hub_id)


def _local(path: Path, text: str) -> ModelShape:
    if path.suffix == ".gguf":
        raise RunError(f"{text}: pack it with `kandiga-pack convert {text} DEST`, then plan DEST")
    folder = path if path.is_dir() else path.parent
    shards = sorted(folder.glob(_SHARD_PATTERN))
    if (folder / MANIFEST_NAME).exists() or not shards:
        with open_set(path) as container:
            return container_shape(text, container, container.config, is_published=False)
    tensors: dict[str, TensorSize] = {}
    for shard in shards:
        tensors |= read_header(shard)
    config_path = folder / _CONFIG_NAME
    config = parse_config(config_path.read_bytes(), config_path)
    return checkpoint_shape(text, tensors, config, kind="checkpoint")


def _remote(hub_id: HubId) -> ModelShape:
    sizes, commit = _list_files(hub_id)
    files = HubFiles(HubId(hub_id.repository, commit))
    if MANIFEST_NAME in sizes:
        with tempfile.TemporaryDirectory(prefix="kandiga-index-") as temporary:
            fetch_index(files, Path(temporary))
            with open_set(temporary) as container:
                return container_shape(
                    str(hub_id), container, _remote_config(files, sizes), is_published=True
                )
    shards = sorted(name for name in sizes if fnmatch(name, _SHARD_PATTERN))
    if not shards:
        raise RunError(
            f"{hub_id}: neither {MANIFEST_NAME} nor {_SHARD_PATTERN} in it: not a model that can "
            "be packed"
        )
    config = _remote_config(files, sizes)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        headers = list(pool.map(lambda name: _remote_header(files, name), shards))
    tensors = {name: size for header in headers for name, size in header.items()}
    return checkpoint_shape(
        str(hub_id),
        tensors,
        config,
        kind="hub checkpoint",
        file_sizes=[sizes[name] for name in shards],
    )


def _list_files(hub_id: HubId) -> tuple[dict[str, int], str]:
    """Return {name: bytes} of the files at the top of a repository, and the commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with hub_errors(hub_id):
        commit = HfApi().model_info(hub_id.repository, revision=hub_id.revision).sha or "main"
        entries = HfApi().list_repo_tree(hub_id.repository, revision=commit)
        return {each.path: each.size for each in entries if isinstance(each, RepoFile)}, commit


def _remote_config(files: HubFiles, sizes: Mapping[str, int]) -> dict[str, Any]:
    if _CONFIG_NAME not in sizes:
        raise RunError(f"{files.hub_id.repository}: no {_CONFIG_NAME} in it")
    if sizes[_CONFIG_NAME] > _MAX_CONFIG_BYTES:
        raise RunError(f"{files.hub_id.repository}: {_CONFIG_NAME} of {sizes[_CONFIG_NAME]} bytes")
    data = files.read(_CONFIG_NAME, 0, max(sizes[_CONFIG_NAME], 1))
    return parse_config(data, Path(files.hub_id.repository) / _CONFIG_NAME)


def _remote_header(files: HubFiles, name: str) -> dict[str, TensorSize]:
    start = files.read(name, 0, _HEADER_GUESS_BYTES)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise RunError(f"{files.hub_id.repository}: {name} is not a safetensors file")
    if len(start) < 8 + length:
        start += files.read(name, len(start), 8 + length - len(start))
    return parse_header(start[8 : 8 + length], f"{files.hub_id.repository}: {name}")
