"""A set of shards, opened as one model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from formats import canonical_json, digests, dtypes
from formats.buffers import Buffer, as_bytes
from formats.constants import EXPERT_ENTRY_BYTES, MAX_CONFIG_DEPTH, MAX_JSON_BYTES, MAX_JSON_VALUES
from formats.crc32 import crc32
from formats.dense import DenseTensor
from formats.errors import KexpError, os_errors, short
from formats.expert_index import ENTRY, Entries, ExpertExtent, LayerRows
from formats.layout import Layout
from formats.manifest import MANIFEST_NAME, Manifest, parse_manifest
from formats.meta import layer_plans
from formats.plan import LayerPlan
from formats.sections import LAYT
from formats.shard import Shard

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = MAX_JSON_BYTES


def open_set(path: str | Path) -> KexpSet:
    """Open the set in a folder, or the set that the .kexp file `path` belongs to.

    Everything but the weights is checked, and the cost does not grow with their size.

    Raises:
        KexpError: with the code of the first fault found.
    """
    return KexpSet(Path(path))


class KexpSet:
    """An open set of shards; a context manager.

    Attributes:
        path: the folder. manifest: kexp.json. shards: in order.
        meta: the metadata document. layers: those with routed experts, ascending.
        dense: dense tensors by name, in the order of their data.
    """

    def __init__(self, path: Path) -> None:
        self.path = _folder_of(path)
        self.manifest = read_manifest(self.path)
        _check_listing(path, self.path, self.manifest)
        opened: list[Shard] = []
        try:
            for record in self.manifest.shards:
                opened.append(Shard(self.path / record.name))
                _check_size(opened[-1], record.size_bytes)
            self.shards = tuple(opened)
            _check_roots(self.shards, self.manifest)
            self.meta: dict[str, Any] = self.shards[0].meta or {}
            self._rows = _check_layers(self.shards, self.meta)
        except BaseException:
            for shard in opened:
                shard.close()
            raise
        self.layers = tuple(self._rows)
        self.dense: Mapping[str, DenseTensor] = MappingProxyType(self.shards[0].tensors)
        self._config: dict[str, Any] | None = None

    def __enter__(self) -> KexpSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files. Views handed out earlier stay valid until they are dropped."""
        for shard in self.shards:
            shard.close()

    def num_experts(self, layer: int) -> int:
        """Return the number of routed experts of a layer; KexpError E_NO_EXPERT."""
        return self._layer(layer)[1].num_experts

    def layout(self, layer: int) -> Layout:
        """Return the layout that all experts of a layer share; KexpError E_NO_EXPERT."""
        return self.shards[0].layouts[self._layer(layer)[1].layout]

    def entries(self, layer: int) -> tuple[int, Entries]:
        """Return (shard, index entries (num_experts,)) of a layer as a view; KexpError E_NO_EXPERT.

        Fields: layer, expert, layout, flags, offset_bytes, block_bytes, crc32, reserved, sha256.
        """
        shard, rows = self._layer(layer)
        view = self.shards[shard].entries[rows.first_row : rows.first_row + rows.num_experts]
        return shard, view

    def extent(self, layer: int, expert: int) -> ExpertExtent:
        """Return where an expert lies, in constant time; KexpError E_NO_EXPERT."""
        shard, rows = self._layer(layer)
        if not 0 <= expert < rows.num_experts:
            raise KexpError(
                "E_NO_EXPERT",
                f"no such expert; the layer has {rows.num_experts}",
                layer=layer,
                expert=expert,
            )
        file = self.shards[shard]
        at = (rows.first_row + expert) * EXPERT_ENTRY_BYTES
        _, _, layout, _, offset, block_bytes, crc, _, sha256 = ENTRY.unpack_from(file.index, at)
        payload_bytes = file.layouts[layout].payload_bytes
        return ExpertExtent(layer, expert, shard, offset, block_bytes, payload_bytes, crc, sha256)

    def block(self, layer: int, expert: int, *, check: bool = True) -> memoryview:
        """Return the payload of an expert, read from its file, (payload_bytes,).

        Raises:
            KexpError: E_BLOCK_CRC if `check` and the bytes are not those written; E_NO_EXPERT;
                E_IO, E_FILE_SIZE.
        """
        extent = self.extent(layer, expert)
        shard = self.shards[extent.shard]
        try:
            data = memoryview(shard.read(extent.offset_bytes, extent.payload_bytes))
        except KexpError as error:
            error.layer, error.expert = layer, expert
            raise
        if check:
            self.check_block(extent, data)
        return data

    def check_block(self, extent: ExpertExtent, data: Buffer) -> None:
        """Raise KexpError E_BLOCK_CRC unless `data` is the payload that was written.

        Args:
            data: buffer of at least payload_bytes; what follows them is ignored.
        """
        actual = crc32(as_bytes(data)[: extent.payload_bytes])
        if actual != extent.crc32:
            raise KexpError(
                "E_BLOCK_CRC",
                f"crc32 {actual:08x} != {extent.crc32:08x}",
                file=self.shards[extent.shard].path,
                offset_bytes=extent.offset_bytes,
                layer=extent.layer,
                expert=extent.expert,
            )

    def _layer(self, layer: int) -> tuple[int, LayerRows]:
        found = self._rows.get(layer)
        if found is None:
            raise KexpError("E_NO_EXPERT", "has no routed experts", layer=layer)
        return found

    def dense_array(self, name: str) -> npt.NDArray[Any]:
        """Return a dense tensor as a read-only view of the map (see `Shard.mmap`).

        bf16 comes as uint16 and 8-bit floats as uint8, with the tensor's shape; 4- and 6-bit
        floats as their bytes, (length_bytes,).

        Raises:
            KexpError: E_NO_TENSOR.
        """
        tensor = self.dense.get(name)
        if tensor is None:
            raise KexpError("E_NO_TENSOR", f"no dense tensor {name!r}", file=self.shards[0].path)
        view = memoryview(self.shards[tensor.shard].mmap)
        data = view[tensor.offset_bytes : tensor.offset_bytes + tensor.length_bytes]
        if dtypes.lookup(tensor.dtype).numpy is None:
            return np.frombuffer(data, dtype=np.uint8)
        return np.frombuffer(data, dtype=dtypes.numpy_dtype(tensor.dtype)).reshape(tensor.shape)

    @property
    def config(self) -> dict[str, Any]:
        """The parsed config.json; KexpError E_FILE_MISSING, E_FILE_SHA256, E_CONFIG.

        It decides the arithmetic, so it must be the very file that was packed.
        """
        if self._config is None:
            self._config = self._read_config()
        return self._config

    def _read_config(self) -> dict[str, Any]:
        path = self.file(CONFIG_NAME)
        data = read_small(path, MAX_CONFIG_BYTES)
        pinned = {record.name: record for record in self.manifest.files}.get(path.name)
        actual = hashlib.sha256(data).hexdigest()
        if pinned is not None and actual != pinned.sha256:
            raise KexpError(
                "E_FILE_SHA256",
                f"sha256 {short(actual)} != {short(pinned.sha256)} in {MANIFEST_NAME}: the file "
                "was changed after packing",
                file=path,
            )
        return parse_config(data, path)

    def file(self, name: str) -> Path:
        """Return the path of a file beside the shards; KexpError E_FILE_MISSING."""
        path = self.path / name
        if not path.is_file():
            raise KexpError("E_FILE_MISSING", f"no such file in {self.path}", file=path)
        return path


def _folder_of(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix == ".kexp":
        return path.parent
    raise KexpError("E_FILE_MISSING", f"{path} is neither a folder nor a .kexp file")


def read_small(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a file, refusing one above `limit_bytes`; KexpError E_IO and others."""
    with os_errors(path, "read"), path.open("rb") as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        if size_bytes > limit_bytes:
            raise KexpError("E_LIMIT", f"{size_bytes} bytes, at most {limit_bytes}", file=path)
        return stream.read(size_bytes)  # read(limit_bytes) would allocate that much


def parse_config(data: bytes, path: Path) -> dict[str, Any]:
    """Return a parsed config.json; KexpError E_CONFIG unless it is a JSON object of sane depth.

    Unlike our own JSON it may have fractions, and the Infinity that some models' configs have.
    """
    if canonical_json.has_too_many_values(data):
        raise KexpError("E_CONFIG", f"has more than {MAX_JSON_VALUES} values", file=path)
    try:
        config = json.loads(data.decode("utf-8"), parse_int=_config_int)
    except (ValueError, RecursionError) as error:
        raise KexpError("E_CONFIG", f"is not JSON: {error}", file=path) from None
    if not isinstance(config, dict):
        raise KexpError("E_CONFIG", "is not a JSON object", file=path)
    stack: list[tuple[Any, int]] = [(config, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, dict | list):
            if depth > MAX_CONFIG_DEPTH:
                message = f"is nested deeper than {MAX_CONFIG_DEPTH}"
                raise KexpError("E_CONFIG", message, file=path)
            children = item.values() if isinstance(item, dict) else item
            stack.extend((child, depth + 1) for child in children)
    return config


def _config_int(literal: str) -> int | float:
    """int() refuses more than 4300 digits, which JSON allows and no config means."""
    return int(literal) if len(literal) <= 4300 else float(literal)


def read_manifest(folder: Path) -> Manifest:
    """Return the checked kexp.json of a folder; KexpError E_FILE_MISSING, E_MANIFEST, E_JSON_*."""
    path = folder / MANIFEST_NAME
    if folder.is_dir() and not path.exists():
        raise KexpError(
            "E_FILE_MISSING",
            f"no such file in {folder}, so this is no .kexp container; kandiga-pack convert makes "
            "one of a checkpoint",
            file=path,
        )
    return parse_manifest(read_small(path, MAX_JSON_BYTES), file=path)


def _check_listing(path: Path, folder: Path, manifest: Manifest) -> None:
    """Refuse .kexp files that the manifest does not list: they are of another conversion."""
    listed = {record.name for record in manifest.shards}
    present = {each.name for each in folder.glob("model*.kexp")}
    if path.suffix == ".kexp" and path != folder:
        present.add(path.name)
    for name in sorted(present - listed):
        raise KexpError("E_SHARD_EXTRA", f"{MANIFEST_NAME} lists no such shard", file=name)


def _check_size(shard: Shard, size_bytes: int) -> None:
    if shard.size_bytes != size_bytes:
        raise KexpError(
            "E_FILE_SIZE",
            f"{shard.size_bytes} bytes, {MANIFEST_NAME} says {size_bytes}",
            file=shard.path,
        )


def _check_roots(shards: tuple[Shard, ...], manifest: Manifest) -> None:
    for shard, record in zip(shards, manifest.shards, strict=True):
        if shard.superblock.set_root.hex() != manifest.set_root:
            raise KexpError(
                "E_SET_ROOT",
                f"set root {short(shard.superblock.set_root)} != "
                f"{short(manifest.set_root)} in {MANIFEST_NAME}: a shard of another set",
                file=shard.path,
                offset_bytes=72,
            )
        if shard.superblock.shard_root.hex() != record.shard_root:
            raise KexpError(
                "E_SHARD_ROOT",
                f"shard root {short(shard.superblock.shard_root)} != "
                f"{short(record.shard_root)} in {MANIFEST_NAME}",
                file=shard.path,
                offset_bytes=104,
            )
        if shard.section(LAYT).sha256 != shards[0].section(LAYT).sha256:
            raise KexpError("E_LAYOUT", "layouts are not those of shard 1", file=shard.path)
    root = digests.set_root(shard.superblock.shard_root for shard in shards).hex()
    if root != manifest.set_root:
        raise KexpError(
            "E_SET_ROOT",
            f"the shards' root is {short(root)}, they say {short(manifest.set_root)}: a shard is "
            "of another set",
            file=shards[0].path,
            offset_bytes=72,
        )


def _check_layers(
    shards: tuple[Shard, ...], meta: Mapping[str, Any]
) -> dict[int, tuple[int, LayerRows]]:
    """Return layer -> (shard, rows), having compared the shards' indexes with the metadata."""
    rows: dict[int, tuple[int, LayerRows]] = {}
    previous = -1
    for number, shard in enumerate(shards):
        for layer, found in shard.layers.items():
            if layer <= previous:
                raise KexpError(
                    "E_INDEX", f"follows layer {previous}", file=shard.path, layer=layer
                )
            previous = layer
            rows[layer] = (number, found)
    indexed = tuple(
        LayerPlan(layer, found.num_experts, found.layout) for layer, (_, found) in rows.items()
    )
    listed = layer_plans(meta)
    if indexed != listed:
        odd = next(iter(set(indexed) ^ set(listed)))
        raise KexpError(
            "E_META",
            f"metadata lists {len(listed)} layers, the index {len(indexed)}, and they differ",
            file=shards[0].path,
            layer=odd.layer,
        )
    return rows
