"""A GGUF file presented as the MLX checkpoint it would be."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from formats import dtypes
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.gguf.families import plan_checkpoint
from kandiga_pack.sources.gguf.reader import MAGIC, open_gguf
from kandiga_pack.sources.gguf.recipes import MatrixRecipe, Recipe, VectorRecipe
from kandiga_pack.sources.gguf.repack import GROUP_SIZE
from kandiga_pack.sources.gguf.tokenizer import Vocabulary, write_tokenizer

# Of a file's bytes, unpacked at a time where rows and not experts are read.
_PIECE_BYTES = 16 << 20
_CHECKPOINT_FILE = "model.safetensors"


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that begins as GGUF does, whatever it is called."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class GgufSource:
    """`kandiga_pack.sources.base.Source` over a GGUF file or a set of parts (name any of them).

    Codes and scales are those of the file, bit for bit (see repack); config.json and the tokenizer
    files are written from its metadata into a temporary folder, which `close` removes.

    Attributes:
        notes: lines the user should read, such as tensors that mlx-lm does not use.

    Raises:
        PackError: the file is damaged, or holds something that cannot be imported without loss.
    """

    repository: str | None = None
    revision: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        model = open_gguf(path)
        plan = plan_checkpoint(model)
        self.notes: list[str] = plan.notes
        self.weight_files: Mapping[str, Path] = {part.name: part for part in model.paths}
        vocabulary = Vocabulary.of(model.metadata, path.name)
        self.config: dict[str, Any] = {
            **plan.config,
            **_token_ids(vocabulary),
            **_quantization(plan.recipes),
        }
        self._recipes: dict[str, Recipe] = {}
        self._last: tuple[tuple[str, int, int], dict[str, np.ndarray]] | None = None
        tensors: dict[str, TensorInfo] = {}
        for recipe in plan.recipes:
            for output in recipe.outputs:
                self._recipes[output.name] = recipe
                tensors[output.name] = TensorInfo(
                    output.name, output.dtype, output.shape, _CHECKPOINT_FILE
                )
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._folder = tempfile.TemporaryDirectory(prefix="kandiga-gguf-")
        try:
            self.files: Sequence[Path] = self._write_files(model.metadata, vocabulary)
        except BaseException:
            self.close()
            raise

    def _write_files(self, metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[Path]:
        folder = Path(self._folder.name)
        files = [_write_json(folder / "config.json", self.config)]
        if ids := _token_ids(vocabulary):
            files.append(_write_json(folder / "generation_config.json", ids))
        return files + write_tokenizer(metadata, folder, self.path.name)

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows [start_row, start_row + num_rows) of axis 0; bf16 comes as uint16.

        Raises:
            KeyError: no tensor of that name.
            PackError: the file cannot give those bytes, or a scale in them is not finite.
        """
        available = self.tensors[name].shape[0] - start_row
        count = available if num_rows is None else num_rows
        if start_row < 0 or not 0 <= count <= available:
            raise IndexError(
                f"{name}: rows {start_row} to {start_row + count} of {self.tensors[name].shape[0]}"
            )
        recipe, info = self._recipes[name], self.tensors[name]
        if count == 0:
            return np.empty((0, *info.shape[1:]), dtypes.numpy_dtype(info.dtype))
        if isinstance(recipe, VectorRecipe):
            return recipe.read(start_row, count)
        role = name.rpartition(".")[2]
        # A row of scales comes with sixteen times its bytes in codes: asked for all scales of an
        # embedding, unpack it piece by piece.
        step = max(1, _PIECE_BYTES // recipe.step_bytes)
        starts = range(start_row, start_row + count, step)
        if len(starts) == 1:
            return self._unpacked(recipe, start_row, count)[role]
        stop = start_row + count
        pieces = [recipe.read(first, min(step, stop - first))[role] for first in starts]
        return np.concatenate(pieces)

    def _unpacked(self, recipe: MatrixRecipe, start: int, count: int) -> dict[str, np.ndarray]:
        """Weight, scales and biases of one expert come out of the same blocks, and are asked for
        one after the other: keep the last ones, so that the blocks are read once."""
        key = (recipe.module, start, count)
        if self._last is None or self._last[0] != key:
            self._last = (key, recipe.read(start, count))
        return self._last[1]

    def close(self) -> None:
        """Remove the temporary folder. Safe to call twice."""
        self._last = None
        self._folder.cleanup()

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _write_json(path: Path, value: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def _token_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """bos and eos as config.json and generation_config.json have them."""
    ids: dict[str, Any] = {}
    if (bos := vocabulary.special_id("tokenizer.ggml.bos_token_id")) is not None:
        ids["bos_token_id"] = bos
    if stops := vocabulary.stop_token_ids:
        ids["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    return ids


def _quantization(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """The quantization entry: the bits most weights have, and the modules that differ."""
    bits = {
        recipe.module: recipe.bits
        for recipe in recipes
        if isinstance(recipe, MatrixRecipe) and recipe.bits is not None
    }
    if not bits:
        return {}
    default = Counter(bits.values()).most_common(1)[0][0]
    overrides = {
        module: {"bits": own, "group_size": GROUP_SIZE}
        for module, own in bits.items()
        if own != default
    }
    return {
        "quantization": {"bits": default, "group_size": GROUP_SIZE, "mode": "affine", **overrides}
    }
