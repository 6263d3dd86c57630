"""A checkpoint folder: safetensors shards, config.json and tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kandiga_pack.errors import PackError, UnreadableError
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.safetensors_file import SafetensorsFile

INDEX_FILE = "model.safetensors.index.json"
# mlx-lm loads every file of this pattern, named in the index or not; so do we.
SHARD_PATTERN = "model*.safetensors"
# The same weights in another format, or somebody else's container: not part of an MLX checkpoint.
OTHER_WEIGHTS = {".bin", ".gguf", ".h5", ".kexp", ".msgpack", ".onnx", ".ot", ".pt", ".pth"}


class CheckpointSource:
    """A folder of safetensors shards, read in slices; a `base.Source`.

    Args:
        path: the folder.
        name: how the user named it (default: the path).
        repository, revision: Hub id and commit, when it is a Hub snapshot.

    Raises:
        UnreadableError: no such folder, no config.json, or no shards.
        PackError: a shard is damaged, or shards and index disagree.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        repository: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.path = path
        self.name = name or str(path)
        self.repository = repository
        self.revision = revision
        self.config = _read_config(path)
        index = _read_index(path)
        self.index_text = index[0] if index else None
        weight_map = index[1] if index else {}
        shard_names = _shard_names(path, weight_map)
        self.shards: dict[str, SafetensorsFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            for shard_name in shard_names:
                self._add_shard(SafetensorsFile(path / shard_name), shard_name)
            self._check_weight_map(weight_map)
        except BaseException:
            self.close()
            raise

    def _add_shard(self, shard: SafetensorsFile, shard_name: str) -> None:
        self.shards[shard_name] = shard
        for name, info in shard.tensors.items():
            if name in self.tensors:
                raise PackError(
                    f"{self.path}: tensor {name} is in both {self.tensors[name].file} and "
                    f"{shard_name}; remove the stale file"
                )
            self.tensors[name] = info

    def _check_weight_map(self, weight_map: Mapping[str, str]) -> None:
        for name, shard_name in weight_map.items():
            if name not in self.shards[shard_name].tensors:
                raise PackError(
                    f"{self.path / shard_name}: tensor {name} is missing, though {INDEX_FILE} says "
                    "it is here; download the file again"
                )

    @property
    def files(self) -> Sequence[Path]:
        """Every file at the top of the folder that is not a weight file, by name."""
        return sorted(path for path in self.path.iterdir() if self._is_companion(path))

    def _is_companion(self, path: Path) -> bool:
        return (
            path.is_file()
            and not path.name.startswith(".")
            and path.name != INDEX_FILE
            and path.name not in self.shards
            and not self._is_other_weights(path)
        )

    def _is_other_weights(self, path: Path) -> bool:
        # Mistral publishes consolidated.safetensors beside the shards: the same weights again.
        return path.suffix in OTHER_WEIGHTS or path.suffix == ".safetensors"

    @property
    def notes(self) -> Sequence[str]:
        """Which weight files are left out."""
        others = sorted(
            path.name
            for path in self.path.iterdir()
            if self._is_other_weights(path) and path.name not in self.shards
        )
        return [f"left out, weights in another form: {', '.join(others)}"] if others else []

    @property
    def weight_files(self) -> Mapping[str, Path]:
        """Shard name -> path."""
        return {name: shard.path for name, shard in self.shards.items()}

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows of axis 0; see base.Source.read."""
        return self.shards[self.tensors[name].file].read(name, start_row, num_rows)

    def read_row(self, name: str, row: int, out: memoryview) -> None:
        """Fill `out` with one row of axis 0 of a tensor. For any thread."""
        self.shards[self.tensors[name].file].read_row(name, row, out)

    def close(self) -> None:
        """Close every shard."""
        for shard in self.shards.values():
            shard.close()


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise PackError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UnreadableError(
            f"{path}: no such file; SOURCE must be a checkpoint folder with config.json and "
            f"{SHARD_PATTERN}"
        )
    config = _read_json_object(path)
    if not isinstance(config.get("model_type"), str):
        raise PackError(f"{path}: no model_type; is this the config of a language model?")
    return config


def _read_index(folder: Path) -> tuple[str, dict[str, str]] | None:
    """Return the index file's text and its map tensor -> shard, or None without an index."""
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    weight_map = _read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise PackError(f"{path}: no weight_map")
    _check_names(path, weight_map)
    missing = sorted({shard for shard in weight_map.values() if not (folder / shard).is_file()})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UnreadableError(
            f"{folder / missing[0]}: no such file{more}, though {INDEX_FILE} names it; "
            "download the checkpoint again"
        )
    return path.read_text(encoding="utf-8"), weight_map


def _check_names(path: Path, weight_map: Mapping[str, str]) -> None:
    """Refuse an index that points outside of the folder: `export` writes under these names."""
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise PackError(f"{path}: weight_map names {shard!r}, expected a plain file name")


def _shard_names(folder: Path, weight_map: Mapping[str, str]) -> list[str]:
    names = {path.name for path in folder.glob(SHARD_PATTERN)} | set(weight_map.values())
    if not names:
        raise UnreadableError(
            f"{folder}: no {SHARD_PATTERN} in this folder; is the download complete?"
        )
    return sorted(names)
