"""A checkpoint folder in any layout, presented as `mlx_lm.convert` would have written it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kandiga_pack.errors import AlreadyQuantizedError, PackError
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted.arrays import tensor_infos
from kandiga_pack.sources.converted.dense import DenseConverter
from kandiga_pack.sources.converted.experts import ExpertConverter
from kandiga_pack.sources.converted.lazy_model import LazyModel, load_as_mlx_lm_converts
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.stacks import OTHER_MODELS


class ConvertedSource:
    """A `base.Source` over a checkpoint folder in any layout mlx-lm loads.

    Args:
        inner: the folder.
        quantization: quantize to this while reading; None keeps the numbers as they are.

    Raises:
        PackError: mlx-lm cannot load the checkpoint, or its experts cannot be taken one by one.
    """

    def __init__(self, inner: CheckpointSource, quantization: Quantization | None) -> None:
        self._inner = inner
        self._quantization = quantization
        self.name, self.path = inner.name, inner.path
        self.repository, self.revision = inner.repository, inner.revision
        _refuse_what_cannot_stream(inner, quantization)
        model = self._load()
        self._expert_paths = model.expert_paths
        self._folder = Path(tempfile.mkdtemp(prefix="kandiga-pack-"))
        try:
            self.config = self._write_config(model)
            self.tensors = tensor_infos(model.parameters)
            self._experts = ExpertConverter(inner, model, self.tensors)
            self._dense = DenseConverter(
                inner, model, self._load, self._experts.sanitizer.unchanged
            )
        except BaseException:
            self.close()
            raise

    @property
    def settings(self) -> dict[str, Any]:
        """What the container records of the conversion, {} when only the layout changed."""
        return self._quantization.as_settings() if self._quantization else {}

    @property
    def files(self) -> Sequence[Path]:
        """The folder's files, with config.json as mlx-lm would write it."""
        others = [path for path in self._inner.files if path.name != "config.json"]
        return sorted([*others, self._folder / "config.json"], key=lambda path: path.name)

    @property
    def notes(self) -> Sequence[str]:
        """What the folder's own notes say, and what mlx-lm does not load."""
        dropped = [
            name
            for name in self._inner.tensors
            if OTHER_MODELS.search(name) and name not in self.tensors
        ]
        lines = list(self._inner.notes)
        if dropped:
            lines.append(
                f"left out, as mlx_lm.convert does: {len(dropped)} tensors of vision, audio or "
                f"prediction heads, such as {dropped[0]}"
            )
        return lines

    @property
    def weight_files(self) -> Mapping[str, Path]:
        """The published shards."""
        return self._inner.weight_files

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows of axis 0; see base.Source.read. Reading in order of rows is fastest."""
        shape = self.tensors[name].shape
        length = shape[0] if shape else 1
        stop = length if num_rows is None else start_row + num_rows
        if name.rpartition(".")[0] in self._expert_paths:
            return self._experts.read(name, start_row, stop)
        return self._dense.read(name, start_row, stop)

    def close(self) -> None:
        """Remove the temporary folder and close the shards."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._inner.close()

    def _load(self) -> LazyModel:
        try:
            return load_as_mlx_lm_converts(self._inner, self._quantization)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise PackError(
                f"{self.name}: mlx-lm cannot load this checkpoint "
                f"({type(error).__name__}: {reason[:200]})"
            ) from error

    def _write_config(self, model: LazyModel) -> dict[str, Any]:
        from mlx_lm.utils import save_config

        path = self._folder / "config.json"
        save_config(model.config, path, keep_vision_config=model.keep_vision_config)
        config: dict[str, Any] = json.loads(path.read_text())
        return config


def _refuse_what_cannot_stream(inner: CheckpointSource, quantization: Quantization | None) -> None:
    config = inner.config
    if quantization is not None and isinstance(config.get("quantization"), dict):
        raise AlreadyQuantizedError(
            f"{inner.name}: already quantized; leave --quantize out to pack it as it is"
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method in ("awq", "gptq"):
        raise PackError(
            f"{inner.name}: {method} weights cannot be converted in slices; run "
            f"`mlx_lm.convert --hf-path {inner.name} --mlx-path OUT` and pack OUT"
        )
    if config.get("model_file") is not None:
        raise PackError(
            f"{inner.name}: config.json asks for Python code of its own "
            f"({config['model_file']}), which is not run; convert it with mlx_lm.convert and "
            "pack the result"
        )
