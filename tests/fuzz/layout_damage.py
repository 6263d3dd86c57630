"""Damage to layouts: fields, shapes, parts and their counts."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence

from fuzz import sets
from fuzz.odd_values import mutate_field
from fuzz.sets import SectionModel, SetModel, ShardModel

#: Where a layout stands in its section, and where its parts.
Places = list[tuple[int, list[int]]]


def _some_layouts(
    model: SetModel, rng: random.Random
) -> tuple[ShardModel, SectionModel, Places] | None:
    """Return a shard, its LAYT and where the layouts stand; None if there are none."""
    shard = rng.choice(model.shards)
    layt = shard.find(b"LAYT")
    if layt is None or not (layouts := sets.layouts_of(layt.raw)):
        return None
    return shard, layt, layouts


def layout_field(model: SetModel, rng: random.Random) -> None:
    if (found := _some_layouts(model, rng)) is None:
        return
    shard, layt, layouts = found
    header, parts = rng.choice(layouts)
    every_part = [at for _, positions in layouts for at in positions]
    if parts and rng.random() < 0.75:
        mutate_field(layt.raw, rng.choice(parts), sets.PART, rng, every_part)
    elif rng.random() < 0.8:
        mutate_field(layt.raw, header, sets.LAYOUT, rng, [at for at, _ in layouts])
    else:
        mutate_field(layt.raw, 0, sets.STRUCTURES["layout_section_header"], rng)
    if rng.random() < 0.5:
        sets.lay_out_again(layt)
    _same_everywhere(model, shard, layt, rng)


def layout_shape(model: SetModel, rng: random.Random) -> None:
    """Codes and shapes of one part from the values that exist, all that follows put right."""
    if (found := _some_layouts(model, rng)) is None:
        return
    shard, layt, layouts = found
    _, parts = rng.choice(layouts)
    if not parts:
        return
    at = rng.choice(parts)
    for name, values in rng.sample(_PART_VALUES, rng.choice((1, 1, 2, 3))):
        field = sets.PART[name]
        value = rng.choice(values).to_bytes(field.size_bytes, "little")
        layt.raw[at + field.offset_bytes : at + field.offset_bytes + field.size_bytes] = value
    sets.lay_out_again(layt)
    _same_everywhere(model, shard, layt, rng)


_PART_VALUES: list[tuple[str, Sequence[int]]] = [
    ("projection", range(8)),
    ("role", range(7)),
    ("dtype", range(24)),
    ("mode", range(7)),
    ("ndim", range(4)),
    ("bits", (0, 1, 2, 3, 4, 5, 6, 7, 8, 16)),
    ("group_size", (0, 16, 32, 64, 128, 256)),
    ("rows", (0, 1, 2, 3, 32, 64, 96)),
    ("cols", (0, 1, 2, 3, 4, 8, 12, 64)),
]


def layout_parts(model: SetModel, rng: random.Random) -> None:
    """A part removed, doubled or exchanged; the counts follow, most of the time."""
    if (found := _some_layouts(model, rng)) is None:
        return
    shard, layt, layouts = found
    header, parts = rng.choice(layouts)
    if not parts:
        return
    size = sets.PART.size_bytes
    pieces = [bytes(layt.raw[at : at + size]) for at in parts]
    index = rng.randrange(len(pieces))
    action = rng.randrange(4)
    if action == 0:
        del pieces[index]
    elif action == 1:
        pieces[index:index] = [pieces[index]] * rng.choice((1, 1, 58, 63))
    elif action == 2:
        rng.shuffle(pieces)
    else:
        pieces.append(bytes(rng.choice(pieces)))
        pieces.sort()
    layt.raw[parts[0] : parts[-1] + size] = b"".join(pieces)
    if rng.random() < 0.9:
        struct.pack_into("<H", layt.raw, header + 2, len(pieces) % 65536)
        sets.lay_out_again(layt)
    _same_everywhere(model, shard, layt, rng)


def layout_count(model: SetModel, rng: random.Random) -> None:
    """Whole layouts removed or doubled."""
    if (found := _some_layouts(model, rng)) is None:
        return
    shard, layt, layouts = found
    starts = [*(at for at, _ in layouts), len(layt.raw)]
    pieces = [bytes(layt.raw[begin:end]) for begin, end in itertools.pairwise(starts)]
    index = rng.randrange(len(pieces))
    pieces = rng.choice(
        (pieces[:index] + pieces[index + 1 :], [*pieces, pieces[index]], pieces * 9)
    )
    for number, piece in enumerate(pieces):
        pieces[number] = struct.pack("<H", number % 65536) + piece[2:]
    layt.raw[16:] = b"".join(pieces)
    if rng.random() < 0.8:
        struct.pack_into("<I", layt.raw, 0, len(pieces))
    _same_everywhere(model, shard, layt, rng)


def _same_everywhere(
    model: SetModel, shard: ShardModel, layt: SectionModel, rng: random.Random
) -> None:
    """Give all shards this LAYT, and the blocks the lengths it says, most of the time."""
    for other in model.shards if rng.random() < 0.85 else [shard]:
        theirs = other.find(b"LAYT")
        if theirs is not None:
            theirs.raw[:] = layt.raw
        if rng.random() < 0.85:
            sets.tile_again(other)


LAYOUT_MUTATIONS = (layout_field, layout_shape, layout_parts, layout_count)
