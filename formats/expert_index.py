"""The expert index (section EXPT): 64 bytes an expert, used in place.

No Python object is made per expert: 60 layers of 512 experts are checked as numpy columns, and one
entry is unpacked when somebody asks for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from formats.constants import (
    EXPERT_ENTRY_BYTES,
    MAX_EXPERTS_PER_LAYER,
    MAX_EXPERTS_PER_SHARD,
    MAX_LAYERS,
)
from formats.errors import KexpError
from formats.layout import Layout
from formats.sections import Section

ENTRY_DTYPE = np.dtype(
    [
        ("layer", "<u2"),
        ("expert", "<u2"),
        ("layout", "<u2"),
        ("flags", "<u2"),
        ("offset_bytes", "<u8"),
        ("block_bytes", "<u8"),
        ("crc32", "<u4"),
        ("reserved", "<u4"),
        ("sha256", "V32"),
    ]
)
ENTRY = struct.Struct("<HHHHQQII32s")

MAX_INDEX_BYTES = EXPERT_ENTRY_BYTES * MAX_EXPERTS_PER_SHARD

Entries = npt.NDArray[np.void]


@dataclass(frozen=True)
class ExpertExtent:
    """Where one expert lies.

    shard: index into the set's shards. offset_bytes: in that file. block_bytes: on disk, with
    padding. payload_bytes: what crc32 and sha256 cover.
    """

    layer: int
    expert: int
    shard: int
    offset_bytes: int
    block_bytes: int
    payload_bytes: int
    crc32: int
    sha256: bytes


@dataclass(frozen=True)
class LayerRows:
    """The rows of one layer in its shard's index."""

    first_row: int
    num_experts: int
    layout: int


def entry_rows(data: memoryview | bytes) -> Entries:
    """Return the entries in `data` as a structured array (num_experts,), without a copy."""
    return np.frombuffer(data, dtype=ENTRY_DTYPE)


def check_entries(
    entries: Entries,
    layouts: Sequence[Layout],
    *,
    index: Section,
    blocks: Section,
    file: PurePath,
) -> dict[int, LayerRows]:
    """Return the rows of each layer after checking every entry.

    Layers ascend; the experts of a layer are 0, 1, 2 ... without a gap and share a layout; blocks
    are as long as their layout says and tile section BLKS from its first byte to its last.

    Raises:
        KexpError: E_INDEX or E_INDEX_EXTENT, naming the first bad entry.
    """

    demand = _Demand(entries, index, file)
    _check_fields(entries, len(layouts), demand)
    starts = _check_order(entries, demand)
    _check_extents(entries, layouts, blocks, demand)
    first_rows = np.flatnonzero(starts)
    counts = np.diff(first_rows, append=len(entries))
    return {
        int(entries["layer"][first]): LayerRows(
            int(first), int(count), int(entries["layout"][first])
        )
        for first, count in zip(first_rows, counts, strict=True)
    }


@dataclass(frozen=True)
class _Demand:
    """Raises for the first entry that is not good, saying which one it is."""

    entries: Entries
    index: Section
    file: PurePath

    def __call__(self, good: npt.NDArray[np.bool_], code: str, message: str) -> None:
        if good.all():
            return
        row = int(np.argmin(good))
        entry = self.entries[row]
        raise KexpError(
            code,
            f"index entry {row}: {message}",
            file=self.file,
            offset_bytes=self.index.offset_bytes + row * EXPERT_ENTRY_BYTES,
            layer=int(entry["layer"]),
            expert=int(entry["expert"]),
        )


def _check_fields(entries: Entries, num_layouts: int, demand: _Demand) -> None:
    """Hold each field to its own bounds."""
    demand(entries["flags"] == 0, "E_INDEX", "flags are not zero")
    demand(entries["reserved"] == 0, "E_INDEX", "reserved field is not zero")
    demand(entries["layer"] < MAX_LAYERS, "E_INDEX", f"layer is not below {MAX_LAYERS}")
    demand(
        entries["expert"] < MAX_EXPERTS_PER_LAYER,
        "E_INDEX",
        f"expert is not below {MAX_EXPERTS_PER_LAYER}",
    )
    demand(entries["layout"] < num_layouts, "E_INDEX", f"layout is not below {num_layouts}")


def _check_order(entries: Entries, demand: _Demand) -> npt.NDArray[np.bool_]:
    """Hold entries to their order; return which of them (num_experts,) begin a layer."""
    layer = entries["layer"].astype(np.int64)
    expert = entries["expert"].astype(np.int64)
    layout = entries["layout"]
    starts = np.ones(len(entries), dtype=np.bool_)
    starts[1:] = layer[1:] != layer[:-1]
    ascends = np.ones(len(entries), dtype=np.bool_)
    ascends[1:] = layer[1:] >= layer[:-1]
    demand(ascends, "E_INDEX", "layers do not ascend")
    wanted = np.zeros(len(entries), dtype=np.int64)
    wanted[1:] = expert[:-1] + 1
    wanted[starts] = 0
    demand(expert == wanted, "E_INDEX", "experts of a layer are not 0, 1, 2 ... in order")
    same = np.ones(len(entries), dtype=np.bool_)
    same[1:] = starts[1:] | (layout[1:] == layout[:-1])
    demand(same, "E_INDEX", "experts of a layer have different layouts")
    return starts


def _check_extents(
    entries: Entries, layouts: Sequence[Layout], blocks: Section, demand: _Demand
) -> None:
    """Hold blocks to the lengths of their layouts, side by side from end to end of BLKS."""
    lengths = np.array([each.block_bytes for each in layouts], np.uint64)[entries["layout"]]
    demand(entries["block_bytes"] == lengths, "E_INDEX_EXTENT", "length is not that of its layout")
    # The sum cannot wrap: at most 2**20 entries of 2**30 bytes.
    expected = np.empty(len(entries), dtype=np.uint64)
    expected[0] = blocks.offset_bytes
    np.cumsum(lengths[:-1], out=expected[1:])
    expected[1:] += np.uint64(blocks.offset_bytes)
    demand(
        entries["offset_bytes"] == expected,
        "E_INDEX_EXTENT",
        "block does not follow the one before",
    )
    end = int(expected[-1]) + int(lengths[-1])
    if end != blocks.end_bytes:
        raise KexpError(
            "E_INDEX_EXTENT",
            f"blocks end at {end:#x}, section BLKS at {blocks.end_bytes:#x}",
            file=demand.file,
        )
