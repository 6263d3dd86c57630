"""The state of a sequence as a file: what a model has read once need not be read again.

A safetensors file. Its metadata holds one JSON document: version, the model (the root over all its
bytes), the settings the state was computed with, the tokens, how each layer is held, and a SHA-256
over every array. A state is loaded into the same model with the same settings only. The package is
imported where it is used: starting to run needs no more than numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kandiga_run.errors import RunError

VERSION = 2
_KEY = "kandiga_prompt_cache"
#: A document of a real state is a few bytes a token and layer.
_MAX_TOKENS = 1 << 24

Arrays = dict[str, NDArray[Any]]


class SavedLayer(Protocol):
    """What a layer's cache must be able to do."""

    def save(self) -> tuple[dict[str, Any], Arrays]:
        """Return how it is held (plain JSON values), and its arrays."""

    def load(self, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `save` gave. Raises RunError when it is held otherwise."""


@dataclass(frozen=True)
class StateIdentity:
    """What a state must agree in with the engine that loads it."""

    model: str
    num_experts_per_token: int
    arithmetic: str
    kv: str

    def check(self, saved: Mapping[str, Any], path: Path) -> None:
        """RunError that names the first difference."""
        for name, wanted in (
            ("model", self.model),
            ("num_experts_per_token", self.num_experts_per_token),
            ("arithmetic", self.arithmetic),
            ("kv", self.kv),
        ):
            if saved.get(name) != wanted:
                raise RunError(
                    f"{path}: a prompt cache of {name} {saved.get(name)!r}, this run has "
                    f"{wanted!r}: remove the file, or run as it was made"
                )


def save_prompt_cache(
    path: Path, layers: Sequence[SavedLayer], tokens: Sequence[int], identity: StateIdentity
) -> None:
    """Write the caches of all layers, which have seen `tokens`; replaces a file of that name.

    The arrays are copied once in memory on their way.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays: Arrays = {}
    abouts = []
    for index, layer in enumerate(layers):
        about, found = layer.save()
        abouts.append(about)
        arrays |= {f"{index}.{name}": np.ascontiguousarray(array) for name, array in found.items()}
    document = {
        "version": VERSION,
        **vars(identity),
        "tokens": [int(token) for token in tokens],
        "layers": abouts,
        "sha256": _digest(arrays),
    }
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file(arrays, partial, metadata={_KEY: json.dumps(document)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot write the prompt cache: {error}") from error


def read_prompt_cache(path: Path, identity: StateIdentity) -> tuple[list[int], SavedState]:
    """Return the tokens a file's state has seen, and the state; RunError when it does not fit."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            document = _document(path, file.metadata())
            identity.check(document, path)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot read the prompt cache: {error}") from error
    if _digest(arrays) != document.get("sha256"):
        raise RunError(f"{path}: the prompt cache is damaged (SHA-256 differs): remove it")
    return document["tokens"], SavedState(path, document["layers"], arrays)


def saved_tokens(path: Path) -> int:
    """Return how many tokens a file's state has seen; RunError when it is no prompt cache."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return len(_document(path, file.metadata())["tokens"])
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot read the prompt cache: {error}") from error


@dataclass(frozen=True)
class SavedState:
    """Layers as they were saved, checked but for their shapes."""

    path: Path
    abouts: list[Any]
    arrays: Arrays

    def load_into(self, layers: Sequence[SavedLayer]) -> None:
        """Fill empty caches; RunError when a layer is of another kind or shape."""
        if len(layers) != len(self.abouts):
            raise RunError(f"{self.path}: {len(self.abouts)} layers, the model has {len(layers)}")
        for index, (layer, about) in enumerate(zip(layers, self.abouts, strict=True)):
            prefix = f"{index}."
            own = {
                name.removeprefix(prefix): array
                for name, array in self.arrays.items()
                if name.startswith(prefix)
            }
            try:
                layer.load(about, own)
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{self.path}: layer {index} does not fit: {error}") from error


def take(arrays: Mapping[str, NDArray[Any]], name: str, dtype: Any, shape: object) -> NDArray[Any]:
    """Return an array of a saved layer; ValueError when its dtype or shape is another."""
    array = arrays[name]
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, wanted {np.dtype(dtype)} {shape}")
    return array


def _document(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        document = json.loads((metadata or {})[_KEY])
        version = document["version"]
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path}: not a prompt cache of kandiga") from None
    if version != VERSION:
        raise RunError(
            f"{path}: a prompt cache of version {version}, this program knows {VERSION}: remove it"
        )
    tokens, layers = document.get("tokens"), document.get("layers")
    is_list = isinstance(tokens, list) and all(type(token) is int for token in tokens)
    if not is_list or len(tokens) > _MAX_TOKENS or not isinstance(layers, list):
        raise RunError(f"{path}: the prompt cache is damaged (its tokens or layers are no lists)")
    return dict(document)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
