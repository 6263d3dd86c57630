"""The head of a shard, rebuilt from what is left of the set.

A head is all that precedes the weights: superblock, section table, META, LAYT, EXPT and the header
of DENS. Much of it says the same thing twice, and kexp.json pins the shard root, so guesses may be
tried: one that opens with that root is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from formats import KexpError, Layout, digests
from formats.constants import EXPERT_ENTRY_BYTES, HEADER_BYTES, MAX_JSON_BYTES, MIB, round_up
from formats.dense import header_bytes
from formats.expert_index import ENTRY_DTYPE
from formats.layout_section import MAX_LAYOUT_SECTION_BYTES, parse_layouts
from formats.manifest import Manifest, ShardRecord
from formats.meta import layer_plans, parse_meta
from formats.plan import LayerPlan, place_sections
from formats.sections import (
    BLKS,
    DENS,
    EXPT,
    LAYT,
    META,
    Section,
    first_section_floor,
    required_tags,
    section_align,
)
from formats.superblock import Superblock

# Metadata, layouts and an index of half a million experts.
_MAX_HEAD_BYTES = 64 * MIB
_CHUNK_BYTES = 4 * MIB
_LAYOUT_HEADER = struct.Struct("<HH28x")
_PART_BYTES = 32
_RAW_DECODER = json.JSONDecoder()

Payload = Callable[[int, int, Layout], bytes]

# What a reader of damaged bytes may run into.
_UNREADABLE = (KexpError, ValueError, struct.error, OSError, IndexError, RecursionError)


def rebuilt_heads(
    folder: Path,
    record: ShardRecord,
    manifest: Manifest,
    *,
    layouts: bytes | None,
    meta: dict[str, Any] | None,
    dense_header: bytes | None = None,
    payload: Payload | None = None,
) -> Iterator[bytes]:
    """Yield what the head of a shard may have been, cheapest guess first.

    Args:
        layouts: section LAYT of another shard, which is the same in all.
        meta: the set's metadata, None if it is lost.
        dense_header: of section DENS, when the file's own is lost.
        payload: (layer, expert, layout) -> its bytes, when the file's own are damaged.
    """
    remains = _Remains(folder / record.name, record, manifest, layouts, meta, dense_header, payload)
    yield remains.start  # the file was cut short or made longer
    for guess in (remains.with_new_superblock, remains.assembled):
        try:
            yield guess()
        except _UNREADABLE:
            continue


def salvage_meta(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Return the metadata of a set from wherever in the first shard it stands, or None."""
    count = len(required_tags(0, len(manifest.shards)))
    start = _read(folder / manifest.shards[0].name, first_section_floor(count) + MAX_JSON_BYTES)
    try:
        raw = _json_at(start, round_up(first_section_floor(count), section_align(META)))
        return parse_meta(raw, file=None)
    except _UNREADABLE:
        return None


def _read(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(length)
    except OSError:
        return b""


def _json_at(data: bytes, at: int) -> bytes:
    text = data[at : at + MAX_JSON_BYTES].decode("utf-8", "replace")
    _, end = _RAW_DECODER.raw_decode(text)
    return text[:end].encode()


@dataclass
class _Digest:
    """Length and checksums of a section's bytes."""

    length: int
    crc32: int
    sha256: bytes

    @classmethod
    def of(cls, data: bytes) -> _Digest:
        return cls(len(data), zlib.crc32(data), hashlib.sha256(data).digest())


class _Remains:
    """A damaged file and what is known about it from elsewhere."""

    def __init__(
        self,
        path: Path,
        record: ShardRecord,
        manifest: Manifest,
        layouts: bytes | None,
        meta: dict[str, Any] | None,
        dense_header: bytes | None,
        payload: Payload | None,
    ) -> None:
        self.path, self.record, self.manifest = path, record, manifest
        self.number = manifest.shards.index(record)
        self.count = len(manifest.shards)
        self.tags = required_tags(self.number, self.count)
        self.start = _read(path, min(record.size_bytes, _MAX_HEAD_BYTES))
        self._layouts, self._meta, self._dense_header = layouts, meta, dense_header
        self._payload = payload

    def with_new_superblock(self) -> bytes:
        """Return the start with a superblock that follows from kexp.json and the section table."""
        table = self.start[HEADER_BYTES : first_section_floor(len(self.tags))]
        return self._superblock(table) + self.start[HEADER_BYTES:]

    def _superblock(self, table: bytes) -> bytes:
        return Superblock(
            file_bytes=self.record.size_bytes,
            shard_no=self.number,
            shard_count=self.count,
            section_count=len(self.tags),
            table_crc32=zlib.crc32(table),
            set_root=bytes.fromhex(self.manifest.set_root),
            shard_root=bytes.fromhex(self.record.shard_root),
        ).pack()

    def assembled(self) -> bytes:
        """Return a head made of sections found or computed, each at its place."""
        found: dict[bytes, bytes] = {}
        at = first_section_floor(len(self.tags))
        if META in self.tags:
            at = round_up(at, section_align(META))
            found[META] = _json_at(self.start, at)
            at += len(found[META])
        at = round_up(at, section_align(LAYT))
        found[LAYT] = self._layouts or _layouts_at(self.start, at)
        layouts = parse_layouts(found[LAYT], file=self.path)
        layers = self._layers(found, layouts) if EXPT in self.tags else ()
        blocks_bytes = sum(each.num_experts * layouts[each.layout].block_bytes for each in layers)
        known = {tag: _Digest.of(data) for tag, data in found.items()}
        if EXPT in self.tags:
            blocks_at = self.record.size_bytes - blocks_bytes
            entries = self._index(layers, layouts, blocks_at)
            found[EXPT] = entries.tobytes()
            known[EXPT] = _Digest.of(found[EXPT])
            root = digests.tree_root(bytes(each) for each in entries["sha256"])
            known[BLKS] = _Digest(blocks_bytes, 0, root)
        if DENS in self.tags:
            lengths = {tag: digest.length for tag, digest in known.items()} | {DENS: 0, BLKS: 0}
            dense_at = place_sections(self.number, self.count, lengths)[DENS]
            found[DENS] = self._dense_header or self._own_dense_header(dense_at)
            known[DENS] = self._dense_digest(dense_at, found[DENS])
        return self._lay_out(found, known)

    def _layers(
        self, found: dict[bytes, bytes], layouts: Sequence[Layout]
    ) -> tuple[LayerPlan, ...]:
        """Return the layers whose experts this file holds: those that give its length."""
        document = parse_meta(found[META], file=self.path) if META in found else self._meta
        if document is None:
            raise ValueError("which layers are in which shard is lost with the metadata")
        layers = layer_plans(document)
        if META in self.tags:
            return layers
        begin = 0
        for number in range(1, self.count):
            end, size = begin, -1
            while end < len(layers) and size < self.manifest.shards[number].size_bytes:
                end += 1
                size = self._file_bytes(number, layers[begin:end], layouts, len(found[LAYT]))
            if number == self.number:
                return layers[begin:end]
            begin = end
        raise ValueError("no such shard")

    def _file_bytes(
        self, number: int, layers: Sequence[LayerPlan], layouts: Sequence[Layout], layt_bytes: int
    ) -> int:
        experts = sum(each.num_experts for each in layers)
        blocks = sum(each.num_experts * layouts[each.layout].block_bytes for each in layers)
        lengths = {LAYT: layt_bytes, EXPT: EXPERT_ENTRY_BYTES * experts, BLKS: blocks}
        return place_sections(number, self.count, lengths)[BLKS] + blocks

    def _index(self, layers: Sequence[LayerPlan], layouts: Sequence[Layout], at: int) -> np.ndarray:
        """Return the expert index as the blocks themselves give it."""
        rows = []
        for layer in layers:
            layout = layouts[layer.layout]
            for expert in range(layer.num_experts):
                if self._payload is not None:
                    payload = self._payload(layer.layer, expert, layout)
                else:
                    payload = self._own_payload(at, layout)
                digest = hashlib.sha256(payload).digest()
                row = (layer.layer, expert, layer.layout, 0, at, layout.block_bytes)
                rows.append((*row, zlib.crc32(payload), 0, digest))
                at += layout.block_bytes
        return np.array(rows, dtype=ENTRY_DTYPE)

    def _own_payload(self, at: int, layout: Layout) -> bytes:
        with self.path.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), layout.payload_bytes, at)

    def _own_dense_header(self, at: int) -> bytes:
        length = header_bytes(
            self.start[at : at + 8], section_bytes=self.record.size_bytes - at, file=self.path
        )
        return self.start[at : at + length]

    def _dense_digest(self, at: int, header: bytes) -> _Digest:
        entries = json.loads(header[8:])
        ends = [each["data_offsets"][1] for each in entries.values()]
        length = len(header) + max(ends, default=0)
        crc32, sha256 = zlib.crc32(header), hashlib.sha256(header)
        with self.path.open("rb") as stream:
            stream.seek(at + len(header))
            left = length - len(header)
            while left and (data := stream.read(min(left, _CHUNK_BYTES))):
                crc32 = zlib.crc32(data, crc32)
                sha256.update(data)
                left -= len(data)
        return _Digest(length, crc32, sha256.digest())

    def _lay_out(self, found: dict[bytes, bytes], known: dict[bytes, _Digest]) -> bytes:
        lengths = {tag: digest.length for tag, digest in known.items()}
        offsets = place_sections(self.number, self.count, lengths)
        table = b""
        for tag in self.tags:
            digest = known[tag]
            table += Section(
                tag, offsets[tag], digest.length, digest.length, digest.crc32, digest.sha256
            ).pack()
        end = max(offsets[tag] + len(data) for tag, data in found.items())
        head = bytearray(end)
        head[:HEADER_BYTES] = self._superblock(table)
        head[HEADER_BYTES : HEADER_BYTES + len(table)] = table
        for tag, data in found.items():
            head[offsets[tag] : offsets[tag] + len(data)] = data
        return bytes(head)


def _layouts_at(data: bytes, at: int) -> bytes:
    """Return section LAYT from where it begins; its length follows from its counts."""
    (count,) = struct.unpack_from("<I", data, at)
    end = at + 16
    for _ in range(count):
        _, parts = _LAYOUT_HEADER.unpack_from(data, end)
        end += _LAYOUT_HEADER.size + parts * _PART_BYTES
        if end - at > MAX_LAYOUT_SECTION_BYTES:
            raise ValueError("layouts do not end")
    return data[at:end]
