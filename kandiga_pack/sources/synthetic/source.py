"""A checkpoint that exists only as it is read."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from formats import dtypes
from formats.buffers import as_bytes
from kandiga_pack import families
from kandiga_pack.errors import PackError, UnreadableError, UsageError
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.sources.synthetic import stream
from kandiga_pack.sources.synthetic.presets import PRESETS
from kandiga_pack.sources.synthetic.shape import make_shape, trimmed
from kandiga_pack.sources.synthetic.tokenizer import write_tokenizer
from kandiga_pack.sources.synthetic.values import pool_of, values_of

_VOCAB_SIZE_KEYS = ("vocab_size", "num_vocab")


class SyntheticSource:
    """A `base.Source` and `base.RowReader` of a published shape with made-up weights.

    The same arguments give the same tensors everywhere, bit for bit.

    Args:
        model: a key of PRESETS, or a config.json or the folder it is in.
        num_layers: only the first so many.
        quantization: affine; None leaves the weights in bf16.
        seed: other seeds give other weights.

    Raises:
        UsageError: no such preset, and no such number of layers.
        UnreadableError: no such file.
        PackError: not the config of a model that mlx-lm knows.
    """

    repository: str | None = None
    revision: str | None = None
    notes: Sequence[str] = ()

    def __init__(
        self,
        model: str,
        *,
        num_layers: int | None = None,
        quantization: Quantization | None,
        seed: int = 0,
    ) -> None:
        self.name = f"synthetic {model}, seed {seed}"
        self._seed = seed
        self.path, published = _find(model)
        shape = make_shape(trimmed(published, num_layers), quantization, where=model)
        self.tensors = shape.tensors
        #: what each quantized matrix is made of, by its module's path
        self.matrices = shape.matrices
        self._num_layers = families.num_layers(shape.config) or 1
        self.weight_files: Mapping[str, Path] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="kandiga-synth-"))
        try:
            self.config, self.files = _write_files(self._folder, shape.config, self.name)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows of axis 0; see base.Source.read."""
        info = self.tensors[name]
        dtype = dtypes.numpy_dtype(info.dtype)
        if not info.shape:
            scalar = np.empty((), dtype)
            self._fill(name, as_bytes(scalar), 0)
            return scalar
        available = info.shape[0] - start_row
        count = available if num_rows is None else num_rows
        if start_row < 0 or not 0 <= count <= available:
            raise IndexError(f"{name}: rows {start_row}..{start_row + count} of {info.shape[0]}")
        rows = np.empty((count, *info.shape[1:]), dtype)
        if rows.size:
            self._fill(name, as_bytes(rows), start_row * info.row_bytes)
        return rows

    def read_row(self, name: str, row: int, out: memoryview) -> None:
        """Fill `out` with one row of axis 0; see base.RowReader."""
        info = self.tensors[name]
        if not 0 <= row < info.shape[0] or len(out) != info.row_bytes:
            raise IndexError(f"{name}: {len(out)} bytes of row {row} of {info.shape}")
        self._fill(name, out, row * info.row_bytes)

    def _fill(self, name: str, out: memoryview, offset_bytes: int) -> None:
        module, _, role = name.rpartition(".")
        values = values_of(self.tensors[name], self.matrices.get(module), self._num_layers)
        # Scales and biases belong together, so they are the same places of their two pools.
        name = f"{module}.scales" if role == "biases" else name
        stream.fill(
            out,
            pool_of(values, self._seed),
            stream.stream_key(self._seed, name),
            offset_bytes,
            disguise=role == "weight" and module in self.matrices,
        )

    def close(self) -> None:
        """Remove the temporary folder. Safe to call twice."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _find(model: str) -> tuple[Path, dict[str, Any]]:
    if model in PRESETS:
        return Path(model), PRESETS[model]
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if path.suffix != ".json" and not path.exists():
        raise UsageError(
            f"{model}: no such preset, and no config.json there; presets are {', '.join(PRESETS)}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableError(f"{path}: no such file") from None
    except ValueError as error:
        raise PackError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise PackError(f"{path}: no model_type; is this the config of a language model?")
    return path, config


def _write_files(
    folder: Path, config: dict[str, Any], name: str
) -> tuple[dict[str, Any], list[Path]]:
    """Write config.json and the tokenizer's files; return the config and the files."""
    text = families.text_config(config)
    stated = (scope.get(key) for scope in (text, config) for key in _VOCAB_SIZE_KEYS)
    vocab_size = next((size for size in stated if isinstance(size, int)), None)
    if vocab_size is None:
        raise PackError(
            f"{name}: config.json states no vocab_size (looked for {', '.join(_VOCAB_SIZE_KEYS)})"
        )
    files = write_tokenizer(folder, vocab_size, text.get("max_position_embeddings"))
    # The special tokens are the last ones.
    config = {**config, "_name_or_path": name, "eos_token_id": vocab_size - 1}
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8")), [path, *files]
