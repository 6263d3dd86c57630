"""Where right bytes come from: another copy of the container, or the checkpoint it is made of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from formats import DenseSpec, Layout, plan_image, plan_shards
from formats.buffers import as_bytes
from formats.errors import os_errors, short
from formats.hub import HubError, HubFiles, HubId, parse_hub_id
from formats.layout_section import pack_layouts
from formats.manifest import MANIFEST_NAME, FileRecord, Manifest, parse_manifest
from formats.reader import read_manifest
from formats.remote_index import fetch_index, is_missing_entry
from formats.sections import Section
from formats.shard import Shard
from kandiga_pack.errors import AlreadyQuantizedError, PackError, UnreadableError
from kandiga_pack.repair.damage import CHUNK_BYTES, Block, head_bytes
from kandiga_pack.repair.rewrite import join
from kandiga_pack.slices import iter_slices
from kandiga_pack.sources.base import Source, TensorInfo
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.open import open_source
from kandiga_pack.sources.remote import RemoteCheckpoint
from kandiga_pack.stacks import TENSOR_NAMES, find_stacks


@dataclass(frozen=True)
class HeadParts:
    """What a checkpoint knows of a head: section LAYT, the header of section DENS, and what gives
    (layer, expert, layout) -> payload."""

    layouts: bytes
    dense_header: bytes
    payload: Callable[[int, int, Layout], bytes] | None


class Origin(Protocol):
    """Gives bytes that are compared with the recorded digests before anything is written.

    Each method raises PackError, KexpError or HubError when it cannot give them.
    """

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def num_bytes(self) -> int:
        """Bytes read from it so far."""

    @property
    def num_requests(self) -> int:
        """Requests made to the Hub so far."""

    def check(self, manifest: Manifest) -> None:
        """Raise PackError if it can be seen already that this is another model."""

    def manifest(self) -> bytes:
        """Return kexp.json."""

    def head(self, name: str) -> bytes:
        """Return all of a shard that precedes its weights."""

    def head_parts(self) -> HeadParts | None:
        """Return what it knows of a head; None when `head` gives all of it anyway."""

    def block(self, shard_name: str, block: Block) -> bytes:
        """Return the payload of an expert."""

    def dense(self, shard_name: str, section: Section) -> Iterator[bytes]:
        """Yield section DENS in order."""

    def file(self, record: FileRecord) -> bytes:
        """Return a file that stands beside the shards."""

    def close(self) -> None:
        """Release files."""


class _LocalFiles:
    """Ranges of bytes of the files in a folder; the counterpart of formats.hub.HubFiles."""

    num_requests = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes = 0

    def read(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        path = self.folder / name
        with os_errors(path, "read"), path.open("rb") as stream:
            stream.seek(offset_bytes)
            data = stream.read(length_bytes)
        self.num_bytes += len(data)
        return data


class CopyOrigin:
    """Another copy of the same container: bytes from the same places."""

    def __init__(self, name: str, files: _LocalFiles | HubFiles) -> None:
        self.name = name
        self._files = files
        self._index: tempfile.TemporaryDirectory[str] | None = None

    @property
    def num_bytes(self) -> int:
        return self._files.num_bytes

    @property
    def num_requests(self) -> int:
        return self._files.num_requests

    def check(self, manifest: Manifest) -> None:
        theirs = parse_manifest(self.manifest(), file=Path(self.name, MANIFEST_NAME))
        if theirs.set_root != manifest.set_root:
            raise PackError(
                f"{self.name}: is another model, or another conversion: its set root is "
                f"{short(theirs.set_root)}, wanted {short(manifest.set_root)}; nothing was written"
            )

    def manifest(self) -> bytes:
        return self._files.read(MANIFEST_NAME, 0, 1 << 24)

    def head(self, name: str) -> bytes:
        folder = self._index_folder()
        shard = Shard(folder / name)
        try:
            return shard.read(0, head_bytes(shard))
        finally:
            shard.close()

    def head_parts(self) -> HeadParts | None:
        return None

    def _index_folder(self) -> Path:
        """Return a folder with right heads: the copy itself, or what stands for it."""
        if isinstance(self._files, _LocalFiles):
            return self._files.folder
        if self._index is None:
            self._index = tempfile.TemporaryDirectory(prefix="kandiga-index-")
            fetch_index(self._files, Path(self._index.name))
        return Path(self._index.name)

    def block(self, shard_name: str, block: Block) -> bytes:
        return self._files.read(shard_name, block.offset_bytes, block.layout.payload_bytes)

    def dense(self, shard_name: str, section: Section) -> Iterator[bytes]:
        for offset in range(section.offset_bytes, section.end_bytes, CHUNK_BYTES):
            length = min(CHUNK_BYTES, section.end_bytes - offset)
            yield self._files.read(shard_name, offset, length)

    def file(self, record: FileRecord) -> bytes:
        return self._files.read(record.name, 0, record.size_bytes)

    def close(self) -> None:
        if self._index is not None:
            self._index.cleanup()


class CheckpointOrigin:
    """The checkpoint that was packed: an expert's parts are put together again.

    Args:
        source: opened with the quantization of the conversion, if there was one.
        meta: the container's metadata; None when it is lost.
        hub: counts what is fetched, when the source is on the Hub.
    """

    def __init__(
        self,
        source: Source | RemoteCheckpoint,
        meta: Mapping[str, Any] | None,
        hub: HubFiles | None = None,
    ) -> None:
        self._source = source
        self._hub = hub
        self._num_bytes = 0
        self._prefixes = {each["layer"]: each["prefix"] for each in meta["layers"]} if meta else {}

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def num_bytes(self) -> int:
        return self._hub.num_bytes if self._hub else self._num_bytes

    @property
    def num_requests(self) -> int:
        return self._hub.num_requests if self._hub else 0

    def check(self, manifest: Manifest) -> None:
        """Nothing is known before the first bytes are compared."""

    def manifest(self) -> bytes:
        raise self._cannot(MANIFEST_NAME)

    def head(self, name: str) -> bytes:
        raise self._cannot(f"the index of {name}")

    def head_parts(self) -> HeadParts | None:
        if not self._prefixes:
            return None
        tensors = self._source.tensors
        stacks = find_stacks(tensors, self._source.config, where=self.name)
        plan = plan_shards(0, [(each.layer, each.num_experts, each.layout) for each in stacks])
        header = plan_image(self._dense_specs(tensors)).header
        # An index can be computed from all the experts it is of; not at the price of fetching them.
        return HeadParts(pack_layouts(plan.layouts), header, None if self._hub else self.payload)

    def _cannot(self, what: str) -> PackError:
        return PackError(
            f"{what} is damaged beyond what a checkpoint can mend; give --from another copy of "
            "the container, a folder or a published id"
        )

    def block(self, shard_name: str, block: Block) -> bytes:
        return self.payload(block.layer, block.expert, block.layout)

    def payload(self, layer: int, expert: int, layout: Layout) -> bytes:
        """Return an expert's parts as they lie in its block."""
        prefix = self._prefixes[layer]
        pieces = []
        for part in layout.parts:
            tensor = f"{prefix}.{TENSOR_NAMES[part.projection]}.{part.role}"
            data = self._read(tensor, expert, 1)
            if len(data) != part.length_bytes:
                raise PackError(
                    f"{self.name}: an expert of {tensor} has {len(data)} bytes, wanted "
                    f"{part.length_bytes}; nothing was written"
                )
            pieces.append((part.offset_bytes, data))
        return join(pieces, layout.payload_bytes)

    def _read(self, tensor: str, start_row: int, num_rows: int) -> bytes:
        try:
            data = self._source.read(tensor, start_row, num_rows)
        except (KeyError, IndexError) as error:
            raise PackError(
                f"{self.name}: has no {tensor}, so it is not what was packed; nothing was written"
            ) from error
        self._num_bytes += data.nbytes
        return bytes(as_bytes(data))

    def dense(self, shard_name: str, section: Section) -> Iterator[bytes]:
        tensors = self._source.tensors
        image = plan_image(self._dense_specs(tensors))
        if image.total_bytes != section.raw_bytes:
            raise PackError(
                f"{self.name}: dense weights take {image.total_bytes} bytes, wanted "
                f"{section.raw_bytes}; nothing was written"
            )
        yield image.header
        for spec in image.specs:
            for rows in self._slices(tensors[spec.name]):
                self._num_bytes += rows.nbytes
                yield bytes(as_bytes(rows))

    def _slices(self, info: TensorInfo) -> Iterator[np.ndarray]:
        return iter_slices(self._source, info)  # type: ignore[arg-type]  # reads and no more

    def _dense_specs(self, tensors: Mapping[str, TensorInfo]) -> list[DenseSpec]:
        stacked = tuple(
            f"{prefix}.{name}." for prefix in self._prefixes.values() for name in PROJECTION_NAMES
        )
        return [
            DenseSpec(info.name, info.dtype, info.shape)
            for info in tensors.values()
            if not info.name.startswith(stacked)
        ]

    def file(self, record: FileRecord) -> bytes:
        if isinstance(self._source, RemoteCheckpoint):
            return self._source.companion(record.name)
        found = {path.name: path for path in self._source.files}.get(record.name)
        if found is None:
            raise PackError(f"{self.name}: has no {record.name}")
        data = found.read_bytes()
        self._num_bytes += len(data)
        return data

    def close(self) -> None:
        self._source.close()


PROJECTION_NAMES: Sequence[str] = tuple(TENSOR_NAMES.values())


def open_origin(text: str, meta: Mapping[str, Any] | None, revision: str | None) -> Origin:
    """Open what the user named with --from.

    Args:
        text: a container's or checkpoint's folder, a GGUF file, or the Hub id of either.
        meta: the damaged container's metadata, None when it is lost.
        revision: of a Hub id; by default the commit that `meta` records for it.
    """
    path = Path(text)
    if path.is_file() and path.suffix == ".kexp":
        path = path.parent
    if (path / MANIFEST_NAME).is_file():
        read_manifest(path)
        return CopyOrigin(text, _LocalFiles(path))
    hub_id = None if path.exists() else parse_hub_id(text)
    if hub_id is None:
        return _open_local(text, meta)
    return _open_remote(_pinned(hub_id, meta, revision), meta)


def _open_local(text: str, meta: Mapping[str, Any] | None) -> Origin:
    quantization = Quantization.from_settings(meta.get("conversion") if meta else None)
    try:
        source = open_source(text, quantization=quantization)
    except AlreadyQuantizedError:
        source = open_source(text)
    return CheckpointOrigin(source, meta)


def _pinned(hub_id: HubId, meta: Mapping[str, Any] | None, revision: str | None) -> HubId:
    if revision is not None or hub_id.revision is not None:
        return HubId(hub_id.repository, revision or hub_id.revision)
    source = meta["source"] if meta else {}
    if source.get("repository") == hub_id.repository:
        return HubId(hub_id.repository, source.get("revision"))
    return hub_id


def _open_remote(hub_id: HubId, meta: Mapping[str, Any] | None) -> Origin:
    hub = HubFiles(hub_id)
    try:
        hub.read(MANIFEST_NAME, 0, 1)
        return CopyOrigin(str(hub_id), hub)
    except HubError as error:
        if not is_missing_entry(error):
            raise
    if meta is not None and meta.get("conversion") is not None:
        raise UnreadableError(
            f"{hub_id}: was converted while it was packed, which needs the whole checkpoint here; "
            f"run `hf download {hub_id.repository}` and give --from the folder, or give another "
            "copy of the container"
        )
    return CheckpointOrigin(RemoteCheckpoint(hub, _files_of_tensors(meta)), meta, hub)


def _files_of_tensors(meta: Mapping[str, Any] | None) -> dict[str, str] | None:
    if meta is None or not isinstance(meta.get("tensors"), dict):
        return None
    return {name: file for file, names in meta["tensors"].items() for name in names}
