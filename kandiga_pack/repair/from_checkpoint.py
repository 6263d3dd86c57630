"""Right bytes from the checkpoint that was packed: its tensors put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from formats import DenseSpec, Layout, plan_image, plan_shards
from formats.buffers import as_bytes
from formats.hub import HubFiles
from formats.layout_section import pack_layouts
from formats.manifest import MANIFEST_NAME, FileRecord, Manifest
from formats.sections import Section
from kandiga_pack.errors import PackError
from kandiga_pack.repair.damage import Block
from kandiga_pack.repair.origin import HeadParts
from kandiga_pack.repair.rewrite import join
from kandiga_pack.slices import iter_slices
from kandiga_pack.sources.base import Source, TensorInfo
from kandiga_pack.sources.remote import RemoteCheckpoint
from kandiga_pack.stacks import TENSOR_NAMES, find_stacks


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
            f"{prefix}.{name}."
            for prefix in self._prefixes.values()
            for name in TENSOR_NAMES.values()
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
