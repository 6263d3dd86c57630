"""An MLX checkpoint on the Hub, of which only the bytes asked for are fetched."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from formats.buffers import as_bytes
from formats.hub import HubError, HubFiles
from kandiga_pack.errors import PackError
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.checkpoint import INDEX_FILE
from kandiga_pack.sources.safetensors_file import SafetensorsFile

# Of a shard's start; the headers of quantized checkpoints mostly fit.
_HEADER_GUESS_BYTES = 32 << 10
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_MAX_JSON_BYTES = 64 << 20
_ONE_FILE = "model.safetensors"


class RemoteCheckpoint:
    """Tensors of a safetensors checkpoint on the Hub, read in slices by range requests.

    Headers are fetched when a tensor of that file is first asked for, into sparse files of the true
    length, so that the reader of local files does the reading here too.

    Args:
        hub: the repository at a commit.
        file_of: tensor -> file, when it is known; else the repository's index is fetched.
    """

    def __init__(self, hub: HubFiles, file_of: Mapping[str, str] | None) -> None:
        self._hub = hub
        self.name = str(hub.hub_id)
        self._folder = tempfile.TemporaryDirectory(prefix="kandiga-remote-")
        self._files: dict[str, _RemoteFile] = {}
        self._file_of = dict(file_of) if file_of else self._read_index()

    def _read_index(self) -> dict[str, str]:
        try:
            index = json.loads(self._hub.read(INDEX_FILE, 0, _MAX_JSON_BYTES))
            return dict(index["weight_map"])
        except HubError:
            return dict.fromkeys(self._file(_ONE_FILE).tensors, _ONE_FILE)
        except (ValueError, KeyError, TypeError) as error:
            raise PackError(f"{self.name}: {INDEX_FILE} is not understood ({error!r})") from error

    def info(self, name: str) -> TensorInfo:
        """Return dtype and shape of a tensor, fetching the header of its file; KeyError."""
        return self._file(self._file_of[name]).tensors[name]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor in the order of the files, whose headers are all fetched."""
        return {
            name: info
            for file in sorted(set(self._file_of.values()))
            for name, info in self._file(file).tensors.items()
        }

    @property
    def config(self) -> dict[str, Any]:
        """The parsed config.json."""
        config: dict[str, Any] = json.loads(self.companion("config.json"))
        return config

    def companion(self, name: str) -> bytes:
        """Return a file beside the weights; HubError."""
        return self._hub.read(name, 0, _MAX_JSON_BYTES)

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows of axis 0; see base.Source.read."""
        return self._file(self._file_of[name]).read(name, start_row, num_rows)

    def _file(self, name: str) -> _RemoteFile:
        if name not in self._files:
            self._lay_down_header(name)
            self._files[name] = _RemoteFile(self._hub, Path(self._folder.name) / name)
        return self._files[name]

    def _lay_down_header(self, name: str) -> None:
        if Path(name).name != name:
            raise PackError(f"{self.name}: {name!r} is not a plain file name")
        start = self._hub.read(name, 0, _HEADER_GUESS_BYTES)
        length = 8 + int.from_bytes(start[:8], "little")
        if length > _MAX_HEADER_BYTES:
            raise PackError(
                f"{self.name}: {name} has a header of {length} bytes; is it safetensors?"
            )
        if length > len(start):
            start += self._hub.read(name, len(start), length - len(start))
        with (Path(self._folder.name) / name).open("xb") as stream:
            stream.write(start)
            stream.truncate(self._hub.size_bytes(name))

    def close(self) -> None:
        """Remove the temporary files."""
        for file in self._files.values():
            file.close()
        self._folder.cleanup()


class _RemoteFile(SafetensorsFile):
    """A safetensors file whose header is on this machine and whose tensors are not."""

    def __init__(self, hub: HubFiles, path: Path) -> None:
        super().__init__(path)
        self._hub = hub

    def _read_bytes(self, name: str, offset_bytes: int, length_bytes: int) -> np.ndarray:
        data = np.empty(length_bytes, np.uint8)
        if length_bytes:
            as_bytes(data)[:] = self._hub.read(self.path.name, offset_bytes, length_bytes)
        return data
