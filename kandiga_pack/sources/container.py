"""A packed set read back as the MLX checkpoint it was made from."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from formats import KexpError, KexpSet, Layout, Part, dtypes, open_set
from formats.buffers import as_bytes
from formats.sections import DENS
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.stacks import TENSOR_NAMES

DEFAULT_FILE = "model.safetensors"
_CHECK_BYTES = 8 << 20


class ContainerSource:
    """A .kexp set as a `base.Source`.

    Every expert's block is read whole and its checksum compared the first time one of its parts is
    asked for.

    Raises:
        KexpError: the set is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.set: KexpSet = open_set(path)
        self.path = self.set.path
        self.name = str(path)
        try:
            self.config = self.set.config
            origin = self.set.meta["source"]
            self.repository: str | None = origin.get("repository")
            self.revision: str | None = origin.get("revision")
            self._stacked = _stacked_parts(self.set)
            self.tensors = self._describe()
        except BaseException:
            self.set.close()
            raise
        self._checked: set[tuple[int, int]] = set()
        self._block: tuple[tuple[int, int], np.ndarray] | None = None

    def _describe(self) -> dict[str, TensorInfo]:
        """Return every tensor in the order of the original files."""
        infos = {
            name: TensorInfo(name, tensor.dtype, tensor.shape, DEFAULT_FILE)
            for name, tensor in self.set.dense.items()
        }
        for name, (layer, part) in self._stacked.items():
            shape = (self.set.num_experts(layer), *part.shape)
            infos[name] = TensorInfo(name, part.dtype, shape, DEFAULT_FILE)
        files: Mapping[str, Sequence[str]] = self.set.meta.get("tensors", {})
        if sorted(name for names in files.values() for name in names) != sorted(infos):
            raise KexpError(
                "E_META",
                f"metadata lists {sum(map(len, files.values()))} tensors of the checkpoint, the "
                f"container holds {len(infos)}, and they differ",
                file=self.set.shards[0].path,
            )
        return {
            name: TensorInfo(name, infos[name].dtype, infos[name].shape, file)
            for file, names in files.items()
            for name in names
        }

    @property
    def files(self) -> Sequence[Path]:
        """The files beside the shards that came with the checkpoint."""
        return sorted(
            path
            for path in self.path.iterdir()
            if path.is_file() and path.suffix != ".kexp" and path.name != "kexp.json"
        )

    @property
    def notes(self) -> Sequence[str]:
        """Nothing is left out."""
        return []

    @property
    def weight_files(self) -> Mapping[str, Path]:
        """The shards."""
        return {shard.path.name: shard.path for shard in self.set.shards}

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows of axis 0; see base.Source.read."""
        info = self.tensors[name]
        if num_rows is None and info.shape:
            num_rows = info.shape[0] - start_row
        if name in self._stacked:
            return self._read_experts(name, start_row, num_rows or 0)
        tensor = self.set.dense[name]
        start, length = tensor.offset_bytes, tensor.length_bytes
        shape = info.shape
        if info.shape:
            start, length = start + start_row * info.row_bytes, (num_rows or 0) * info.row_bytes
            shape = (num_rows or 0, *info.shape[1:])
        data = self._pread(tensor.shard, start, length)
        return data.view(dtypes.numpy_dtype(info.dtype)).reshape(shape)

    def experts(self) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        """Yield (layer, expert, its slice of every stacked tensor), in the order of the blocks."""
        names: dict[int, list[str]] = {}
        for name, (layer, _) in self._stacked.items():
            names.setdefault(layer, []).append(name)
        for layer in self.set.layers:
            for expert in range(self.set.num_experts(layer)):
                yield layer, expert, {name: self.read(name, expert, 1) for name in names[layer]}

    def is_stacked(self, name: str) -> bool:
        """Whether a tensor is of routed experts."""
        return name in self._stacked

    def _read_experts(self, name: str, first: int, count: int) -> np.ndarray:
        layer, part = self._stacked[name]
        out = np.empty((count, part.length_bytes), np.uint8)
        for row in range(count):
            out[row] = self._read_part(layer, first + row, part)
        dtype = dtypes.numpy_dtype(part.dtype)
        return out.view(dtype).reshape(count, *part.shape)

    def _read_part(self, layer: int, expert: int, part: Part) -> np.ndarray:
        where = (layer, expert)
        extent = self.set.extent(layer, expert)
        if where in self._checked and (self._block is None or self._block[0] != where):
            return self._pread(
                extent.shard, extent.offset_bytes + part.offset_bytes, part.length_bytes
            )
        if self._block is None or self._block[0] != where:
            block = self._pread(extent.shard, extent.offset_bytes, extent.payload_bytes)
            self.set.check_block(extent, block)
            self._checked.add(where)
            self._block = (where, block)
        return self._block[1][part.offset_bytes : part.offset_bytes + part.length_bytes]

    def _pread(self, shard: int, offset_bytes: int, length_bytes: int) -> np.ndarray:
        """Read and not map: mapped pages would count as this process's memory."""
        file = self.set.shards[shard]
        data = np.empty(length_bytes, np.uint8)
        view, done = as_bytes(data), 0
        while done < length_bytes:
            count = os.preadv(file.fd, [view[done:]], offset_bytes + done)
            if count == 0:
                raise KexpError(
                    "E_FILE_SIZE", "ends early", file=file.path, offset_bytes=offset_bytes + done
                )
            done += count
        return data

    def check_dense(self) -> None:
        """Read all dense weights; KexpError E_SECTION_CRC if they are not those written."""
        shard = self.set.shards[0]
        section = shard.section(DENS)
        if section is None:
            return
        crc32, offset, end = 0, section.offset_bytes, section.offset_bytes + section.stored_bytes
        while offset < end:
            data = self._pread(0, offset, min(_CHECK_BYTES, end - offset))
            crc32 = zlib.crc32(as_bytes(data), crc32)
            offset += data.nbytes
        if crc32 != section.crc32:
            raise KexpError(
                "E_SECTION_CRC",
                f"dense weights: crc32 {crc32:08x} != {section.crc32:08x}",
                file=shard.path,
                offset_bytes=section.offset_bytes,
            )

    def close(self) -> None:
        """Close the shards."""
        self.set.close()


def _stacked_parts(opened: KexpSet) -> dict[str, tuple[int, Part]]:
    """Return {tensor name: (layer, part of an expert)} of every stacked tensor."""
    stacked = {}
    for entry in opened.meta["layers"]:
        layout: Layout = opened.layout(entry["layer"])
        for part in layout.parts:
            name = f"{entry['prefix']}.{TENSOR_NAMES[part.projection]}.{part.role}"
            stacked[name] = (entry["layer"], part)
    return stacked
