"""Small containers for tests: written by the writer, and damaged with every checksum put right.

`reseal` is written from specs/kexp-v1.md with struct and hashlib alone, so that a damaged field
reaches the rule it breaks instead of stopping at a checksum, and so that the digests have a second
implementation.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from formats import DenseSpec, Layout, Part, SetWriter, plan_shards
from formats.buffers import Buffer

HEADER_BYTES = 4096
ENTRY_BYTES = 80
PartData = dict[tuple[str, str], Buffer]


def affine_layout(
    hidden_size: int = 64, intermediate_size: int = 96, *, group_size: int = 32
) -> Layout:
    """A SwiGLU expert, affine 4-bit with bf16 scales."""
    parts = []
    for projection, rows, cols in (
        ("gate", intermediate_size, hidden_size),
        ("up", intermediate_size, hidden_size),
        ("down", hidden_size, intermediate_size),
    ):
        groups = (rows, cols // group_size)
        parts += [
            Part(projection, "weight", "u32", (rows, cols // 8), "affine", 4, group_size),
            Part(projection, "scales", "bf16", groups, "affine", 4, group_size),
            Part(projection, "biases", "bf16", groups, "affine", 4, group_size),
        ]
    return Layout.build(parts)


def plain_layout() -> Layout:
    """An expert of two unquantized layers with biases, odd sizes."""
    return Layout.build(
        [
            Part("fc1", "weight", "f16", (7, 5)),
            Part("fc1", "bias", "f32", (7,)),
            Part("fc2", "weight", "f16", (5, 7)),
            Part("fc2", "bias", "f32", (5,)),
        ]
    )


LAYERS = ((1, 3, affine_layout()), (2, 3, affine_layout()), (5, 2, plain_layout()))
SPECS = (
    DenseSpec("embed.weight", "bf16", (20, 64)),
    DenseSpec("scale", "f32", ()),
    DenseSpec("mask", "bool", (3,)),
    DenseSpec("norm.weight", "f32", (64,)),
)


def make_meta(layers: Sequence[tuple[int, int, Layout]], /, **changes: Any) -> dict[str, Any]:
    """The metadata document of a set with these layers."""
    meta: dict[str, Any] = {
        "architecture": "mixtral",
        "activation": "silu",
        "hidden_size": 64,
        "quantization": {"bits": 4, "group_size": 32},
        "source": {"files": {}, "repository": None, "revision": None},
        "top_k": 2,
        "layers": [
            {"layer": layer, "prefix": f"model.layers.{layer}.mlp", "num_experts": num_experts}
            for layer, num_experts, _ in layers
        ],
    }
    return meta | changes


def random_bytes(rng: np.random.Generator, length: int) -> bytes:
    return rng.integers(0, 256, length, dtype=np.uint8).tobytes()


def write_set(
    dest: Path,
    *,
    layers: Sequence[tuple[int, int, Layout]] = LAYERS,
    specs: Sequence[DenseSpec] = SPECS,
    shard_bytes: int = 1 << 30,
    seed: int = 0,
    files: Mapping[str, bytes] | None = None,
) -> tuple[dict[str, bytes], dict[tuple[int, int], dict[tuple[str, str], bytes]]]:
    """Write a set of random weights at `dest`; return its dense and expert bytes.

    files: what else stands beside the shards, by name; config.json always does.
    """
    rng = np.random.default_rng(seed)
    dense = {spec.name: random_bytes(rng, spec.length_bytes) for spec in specs}
    experts = {
        (layer, expert): {part.key: random_bytes(rng, part.length_bytes) for part in layout.parts}
        for layer, num_experts, layout in layers
        for expert in range(num_experts)
    }
    config = dest.with_name("config.json")
    config.write_text('{"model_type":"mixtral","rope_theta":1e6}')
    plan = plan_shards(sum(map(len, dense.values())), layers, shard_bytes=shard_bytes)
    with SetWriter(dest, plan, make_meta(layers), specs, files=[config]) as writer:
        for name, data in dense.items():
            writer.write_dense(name, data)
        for (layer, expert), parts in experts.items():
            writer.write_expert(layer, expert, dict(parts))
        for name, data in (files or {}).items():
            writer.add_file(name, data)
        writer.commit()
    return dense, experts


# What follows knows the format from its specification, not from `formats`.


def section_entries(data: bytes | bytearray) -> dict[str, tuple[int, int, int]]:
    """Return tag -> (position of the table entry, offset, stored length)."""
    (count,) = struct.unpack_from("<I", data, 64)
    found = {}
    for index in range(count):
        at = HEADER_BYTES + ENTRY_BYTES * index
        tag, _, offset, stored = struct.unpack_from("<4sIQQ", data, at)
        found[tag.decode("latin-1")] = (at, offset, stored)
    return found


@dataclass(frozen=True)
class Body:
    """A section to be placed: its tag, raw bytes, and stored bytes when they differ (zstd)."""

    tag: str
    raw: bytes
    stored: bytes | None = None


def section_bodies(data: bytes | bytearray) -> list[Body]:
    return [Body(tag, section_bytes(data, tag)) for tag in section_entries(data)]


def rebuild(data: bytes | bytearray, bodies: Sequence[Body]) -> bytearray:
    """Return a file with the superblock of `data` and other sections, sealed.

    The blocks must stay where they were, since the index says where they are.
    """
    entries = section_entries(data)
    out = bytearray(data[:HEADER_BYTES]) + bytes(ENTRY_BYTES * len(bodies))
    for index, body in enumerate(bodies):
        stored = body.raw if body.stored is None else body.stored
        out += bytes(-len(out) % (16384 if body.tag in ("DENS", "BLKS") else 128))
        at = HEADER_BYTES + ENTRY_BYTES * index
        crc32, sha256 = zlib.crc32(stored), hashlib.sha256(body.raw).digest()
        if body.tag == "BLKS":
            assert len(out) == entries["BLKS"][1]
            crc32, sha256 = 0, bytes(data[entries["BLKS"][0] + 40 :][:32])
        codec = 0 if body.stored is None else 1
        struct.pack_into(
            "<4sIQQQII32sQ",
            out,
            at,
            body.tag.encode(),
            codec,
            len(out),
            len(stored),
            len(body.raw),
            crc32,
            0,
            sha256,
            0,
        )
        out += stored
    struct.pack_into("<Q", out, 32, len(out))
    struct.pack_into("<I", out, 64, len(bodies))
    reseal(out, sections=False)
    return out


def section_bytes(data: bytes | bytearray, tag: str) -> bytes:
    _, offset, stored = section_entries(data)[tag]
    return bytes(data[offset : offset + stored])


def merkle(items: Sequence[bytes]) -> bytes:
    """RFC 9162 section 2.1.1, word for word."""
    if not items:
        return hashlib.sha256(b"").digest()
    if len(items) == 1:
        return hashlib.sha256(b"\x00" + items[0]).digest()
    split = 1
    while split * 2 < len(items):
        split *= 2
    return hashlib.sha256(b"\x01" + merkle(items[:split]) + merkle(items[split:])).digest()


def reseal(data: bytearray, *, sections: bool = True) -> None:
    """Put right every checksum and root of a one-shard set's file, after damage was done.

    sections: also the entries' checksums of META, LAYT and EXPT.
    """
    (count,) = struct.unpack_from("<I", data, 64)
    items = [bytes(data[0:24]) + bytes(data[40:56])]
    for at in range(HEADER_BYTES, HEADER_BYTES + ENTRY_BYTES * count, ENTRY_BYTES):
        tag, _, offset, stored = struct.unpack_from("<4sIQQ", data, at)
        if sections and tag in (b"META", b"LAYT", b"EXPT"):
            raw = bytes(data[offset : offset + stored])
            struct.pack_into("<I", data, at + 32, zlib.crc32(raw))
            data[at + 40 : at + 72] = hashlib.sha256(raw).digest()
        if tag[:1].isupper():
            items.append(tag + bytes(data[at + 24 : at + 32]) + bytes(data[at + 40 : at + 72]))
    table = bytes(data[HEADER_BYTES : HEADER_BYTES + ENTRY_BYTES * count])
    struct.pack_into("<I", data, 68, zlib.crc32(table))
    shard_root = merkle(items)
    data[72:104] = merkle([shard_root])
    data[104:136] = shard_root
    reseal_header(data)


def reseal_header(data: bytearray) -> None:
    struct.pack_into("<I", data, HEADER_BYTES - 4, zlib.crc32(bytes(data[: HEADER_BYTES - 4])))


def install(folder: Path, data: bytes | bytearray) -> None:
    """Make `data` the one shard of the set in `folder`, with kexp.json in agreement."""
    (folder / "model.kexp").write_bytes(data)
    manifest = json.loads((folder / "kexp.json").read_bytes())
    manifest["set_root"] = bytes(data[72:104]).hex()
    manifest["shards"] = [
        {"name": "model.kexp", "shard_root": bytes(data[104:136]).hex(), "size": len(data)}
    ]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    (folder / "kexp.json").write_text(text)
