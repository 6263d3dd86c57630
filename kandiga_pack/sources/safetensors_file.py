"""One safetensors file, read in slices."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from formats import KexpError, dtypes
from formats.buffers import as_bytes
from formats.constants import MAX_JSON_INT, MAX_TENSOR_DIMS
from kandiga_pack.errors import PackError, UnreadableError
from kandiga_pack.sources.base import TensorInfo


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie in the file."""

    offset_bytes: int
    length_bytes: int


class SafetensorsFile:
    """One open safetensors file.

    The header is checked by the safetensors library itself (extents tile the file exactly, so a
    truncated file is refused here). Slices are read with pread and not mapped: mapped pages would
    count as this process's memory for as long as the kernel keeps them.

    Attributes:
        path: the file.
        header: the JSON of the header as stored, padding included.
        metadata: its `__metadata__` entry.
        tensors: TensorInfo by name, in the order of their bytes.
        size_bytes: of the whole file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = _read_header(path)
        entries = json.loads(self.header)
        self.metadata: dict[str, str] = entries.pop("__metadata__", {})
        start_bytes = 8 + len(self.header)
        ordered = sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        self.tensors = {name: _tensor_info(name, entry, path) for name, entry in ordered}
        self._extents = {name: _extent(entry, start_bytes) for name, entry in ordered}
        self._fd = os.open(path, os.O_RDONLY)
        self.size_bytes = os.fstat(self._fd).st_size

    def withhold(self) -> None:
        """Close the file, whose bytes are not there: a read is then refused until `reopen`."""
        self.close()

    def reopen(self) -> None:
        """Open the file again; PackError if it is not the one whose header was read."""
        if _read_header(self.path) != self.header:
            raise PackError(f"{self.path}: its header is another one than when it was first read")
        self.close()
        self._fd = os.open(self.path, os.O_RDONLY)

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> np.ndarray:
        """Return rows of axis 0 as a fresh C-contiguous array; see Source.read."""
        info, extent = self.tensors[name], self._extents[name]
        dtype = dtypes.numpy_dtype(info.dtype)
        if not info.shape:
            scalar = self._read_bytes(name, extent.offset_bytes, extent.length_bytes)
            return scalar.view(dtype).reshape(())
        if num_rows is None:
            num_rows = info.shape[0] - start_row
        if start_row < 0 or num_rows < 0 or start_row + num_rows > info.shape[0]:
            raise IndexError(f"{name}: rows {start_row}..{start_row + num_rows} of {info.shape[0]}")
        raw = self._read_bytes(
            name, extent.offset_bytes + start_row * info.row_bytes, num_rows * info.row_bytes
        )
        return raw.view(dtype).reshape(num_rows, *info.shape[1:])

    def read_row(self, name: str, row: int, out: memoryview) -> None:
        """Fill `out` with one row of axis 0, as `read` gives it. For any thread."""
        info, extent = self.tensors[name], self._extents[name]
        if not 0 <= row < info.shape[0] or len(out) != info.row_bytes:
            raise IndexError(f"{name}: {len(out)} bytes of row {row} of {info.shape}")
        self._read_at(name, extent.offset_bytes + row * info.row_bytes, out)

    def forget(self, name: str) -> None:
        """Have the page cache drop a tensor that is not read again.

        So a conversion leaves in memory what others keep there, and its own pages are used again,
        which is up to six times cheaper on a virtual machine than to get other ones.
        """
        if self._fd >= 0 and hasattr(os, "posix_fadvise"):
            extent = self._extents[name]
            os.posix_fadvise(
                self._fd, extent.offset_bytes, extent.length_bytes, os.POSIX_FADV_DONTNEED
            )

    def end_bytes(self, name: str) -> int:
        """Return the offset in the file at which a tensor ends."""
        extent = self._extents[name]
        return extent.offset_bytes + extent.length_bytes

    def _read_bytes(self, name: str, offset_bytes: int, length_bytes: int) -> np.ndarray:
        data = np.empty(length_bytes, np.uint8)
        self._read_at(name, offset_bytes, as_bytes(data))
        return data

    def _read_at(self, name: str, offset_bytes: int, view: memoryview) -> None:
        if self._fd < 0:
            raise PackError(f"{self.path}: tensor {name} is wanted, but the file is not here")
        length_bytes, done = len(view), 0
        while done < length_bytes:
            count = os.preadv(self._fd, [view[done:]], offset_bytes + done)
            if count == 0:
                raise PackError(
                    f"{self.path}: tensor {name} ends {length_bytes - done} bytes past the end of "
                    "the file, which shrank while it was read; download it again"
                )
            done += count

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _read_header(path: Path) -> bytes:
    try:
        with path.open("rb") as file:  # first: safetensors calls any failure to open "not found"
            with safe_open(path, framework="numpy"):
                pass
            (length_bytes,) = struct.unpack("<Q", file.read(8))
            return file.read(length_bytes)
    except SafetensorError as error:
        raise PackError(
            f"{path}: not a whole safetensors file ({path.stat().st_size} bytes: {error}); "
            "download it again"
        ) from error
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error


def _tensor_info(name: str, entry: Mapping[str, Any], path: Path) -> TensorInfo:
    try:
        dtype = dtypes.from_safetensors(entry["dtype"])
    except KexpError as error:
        raise PackError(
            f"{path}: tensor {name} has dtype {entry['dtype']}, which cannot be packed"
        ) from error
    shape = tuple(entry["shape"])
    # A dimension of zero makes any other fit the file; numpy's limit is below the library's.
    if len(shape) > MAX_TENSOR_DIMS or math.prod(dim or 1 for dim in shape) > MAX_JSON_INT:
        raise PackError(
            f"{path}: tensor {name} has shape {str(shape)[:200]}, at most {MAX_TENSOR_DIMS} "
            "dimensions and 2^53 - 1 elements can be packed; download it again"
        )
    return TensorInfo(name, dtype, shape, path.name)


def _extent(entry: Mapping[str, Any], start_bytes: int) -> Extent:
    begin, end = entry["data_offsets"]
    return Extent(start_bytes + begin, end - begin)
