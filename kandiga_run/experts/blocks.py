"""Where the blocks of a container lie, which of them have been checked, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from formats import KexpError, KexpSet
from kandiga_run.container.file_guard import advised
from kandiga_run.engine import Check


@dataclass(frozen=True)
class LayerBlocks:
    """All blocks of a layer. They have one size; offsets_bytes has one entry an expert."""

    shard: int
    offsets_bytes: list[int]
    block_bytes: int
    payload_bytes: int


class Blocks:
    """The blocks of every layer, and the policy on checksums.

    "first-touch" checks a block the first time it is brought into this process, "always" every
    time it is read, "off" never.
    """

    def __init__(self, container: KexpSet, check: Check) -> None:
        self._container = container
        self._check = check
        self._layers = {layer: _layer_blocks(container, layer) for layer in container.layers}
        self._unchecked = {
            layer: bytearray(b"\1" * len(blocks.offsets_bytes))
            for layer, blocks in self._layers.items()
        }

    def __getitem__(self, layer: int) -> LayerBlocks:
        return self._layers[layer]

    def needs_check(self, layer: int, expert: int) -> bool:
        """Whether the payload must be checked when it is brought in at this moment."""
        if self._check == "first-touch":
            return bool(self._unchecked[layer][expert])
        return self._check == "always"

    def check(self, layer: int, expert: int, payload: memoryview) -> None:
        """Compare the payload with its checksum; KexpError names layer and expert."""
        self._container.check_block(self._container.extent(layer, expert), payload)
        self._unchecked[layer][expert] = 0

    @contextmanager
    def reading(self, layer: int, expert: int) -> Iterator[None]:
        """Name layer, expert and what to do in whatever goes wrong while a block is brought in."""
        blocks = self._layers[layer]
        shard = self._container.shards[blocks.shard]
        offset_bytes = blocks.offsets_bytes[expert]
        try:
            yield
        except EOFError:
            error = shard.ended(offset_bytes)
        except OSError as cause:
            error = shard.unreadable(cause, offset_bytes)
        except KexpError as cause:
            error = cause
        else:
            return
        error.layer, error.expert = layer, expert
        raise advised(error, self._container.path) from error.__cause__


def _layer_blocks(container: KexpSet, layer: int) -> LayerBlocks:
    layout = container.layout(layer)
    shard, entries = container.entries(layer)
    return LayerBlocks(
        shard=shard,
        offsets_bytes=entries["offset_bytes"].tolist(),
        block_bytes=layout.block_bytes,
        payload_bytes=layout.payload_bytes,
    )
