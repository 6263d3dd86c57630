"""Which layer goes into which shard, and where everything lies: pure functions, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from formats.constants import (
    DEFAULT_SHARD_BYTES,
    MAX_EXPERTS_PER_LAYER,
    MAX_EXPERTS_PER_SHARD,
    MAX_LAYERS,
    MAX_LAYOUTS,
    MAX_SHARD_BYTES,
    MAX_SHARDS,
    round_up,
)
from formats.errors import KexpError
from formats.layout import Layout
from formats.manifest import shard_file_name
from formats.sections import first_section_floor, required_tags, section_align


@dataclass(frozen=True)
class LayerPlan:
    """A layer's routed experts; `layout` is an index into SetPlan.layouts."""

    layer: int
    num_experts: int
    layout: int


@dataclass(frozen=True)
class ShardPlan:
    """One file. blocks_bytes: of its section BLKS, 0 where it has none."""

    name: str
    layers: tuple[LayerPlan, ...]
    blocks_bytes: int


@dataclass(frozen=True)
class SetPlan:
    """The whole set. total_bytes: dense weights and blocks, without the few megabytes of index."""

    layouts: tuple[Layout, ...]
    shards: tuple[ShardPlan, ...]
    total_bytes: int

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        return tuple(layer for shard in self.shards for layer in shard.layers)


def plan_shards(
    dense_bytes: int,
    layers: Sequence[tuple[int, int, Layout]],
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> SetPlan:
    """Return how a model is divided into files.

    One file when everything fits `shard_bytes` and one index. Otherwise the first file is for
    metadata and dense weights, and the others take whole layers, as many as fit; a layer larger
    than `shard_bytes` has a file to itself.

    Args:
        dense_bytes: of the dense weights together.
        layers: (layer, num_experts, layout) of each layer with routed experts, ascending.
        shard_bytes: size aimed at.
    Raises:
        KexpError: E_PLAN for an impossible request, E_LIMIT for one that version 1 cannot hold.
    """
    layouts, planned = _number_layouts(layers)
    sizes = [layer.num_experts * layouts[layer.layout].block_bytes for layer in planned]
    total = dense_bytes + sum(sizes)
    num_experts = sum(layer.num_experts for layer in planned)
    if total <= shard_bytes and num_experts <= MAX_EXPERTS_PER_SHARD:
        return SetPlan(layouts, (ShardPlan("model.kexp", planned, sum(sizes)),), total)
    groups: list[list[int]] = []
    room = rows = 0
    for index, size in enumerate(sizes):
        num_experts = planned[index].num_experts
        if not groups or size > room or num_experts > rows:
            groups.append([])
            room, rows = shard_bytes, MAX_EXPERTS_PER_SHARD
        groups[-1].append(index)
        room -= size
        rows -= num_experts
    count = len(groups) + 1
    shards = [ShardPlan(shard_file_name(0, count), (), 0)]
    for number, group in enumerate(groups, start=1):
        shards.append(
            ShardPlan(
                shard_file_name(number, count),
                tuple(planned[index] for index in group),
                sum(sizes[index] for index in group),
            )
        )
    _check_sizes(shards, dense_bytes)
    return SetPlan(layouts, tuple(shards), total)


def _number_layouts(
    layers: Sequence[tuple[int, int, Layout]],
) -> tuple[tuple[Layout, ...], tuple[LayerPlan, ...]]:
    numbers: dict[Layout, int] = {}
    planned: list[LayerPlan] = []
    for layer, num_experts, layout in layers:
        if not 0 <= layer < MAX_LAYERS or not 1 <= num_experts <= MAX_EXPERTS_PER_LAYER:
            raise KexpError(
                "E_LIMIT",
                f"layer {layer} with {num_experts} experts; layers are below {MAX_LAYERS}, "
                f"experts a layer 1..{MAX_EXPERTS_PER_LAYER}",
            )
        if planned and layer <= planned[-1].layer:
            raise KexpError("E_PLAN", f"layer {layer} follows layer {planned[-1].layer}")
        number = numbers.setdefault(layout, len(numbers))
        planned.append(LayerPlan(layer, num_experts, number))
    if not planned:
        raise KexpError("E_PLAN", "no layer has routed experts: nothing to pack")
    if len(numbers) > MAX_LAYOUTS:
        raise KexpError("E_LIMIT", f"{len(numbers)} layouts, at most {MAX_LAYOUTS}")
    return tuple(numbers), tuple(planned)


def _check_sizes(shards: Sequence[ShardPlan], dense_bytes: int) -> None:
    if len(shards) > MAX_SHARDS:
        raise KexpError(
            "E_LIMIT", f"{len(shards)} shards, at most {MAX_SHARDS}: use a larger shard size"
        )
    for shard in shards:
        size = shard.blocks_bytes or dense_bytes
        if size > MAX_SHARD_BYTES:
            raise KexpError(
                "E_LIMIT", f"{shard.name} would be {size} bytes, at most {MAX_SHARD_BYTES}"
            )


def place_sections(
    shard_no: int, shard_count: int, stored_bytes: Mapping[bytes, int]
) -> dict[bytes, int]:
    """Return the offset of each section of a shard, from the lengths of all of them."""
    tags = required_tags(shard_no, shard_count)
    floor = first_section_floor(len(tags))
    offsets = {}
    for tag in tags:
        offsets[tag] = round_up(floor, section_align(tag))
        floor = offsets[tag] + stored_bytes[tag]
    return offsets
