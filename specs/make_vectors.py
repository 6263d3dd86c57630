"""Makes specs/vectors/: sets that must be read, and sets that must be refused.

    python specs/make_vectors.py [FOLDER]

Written from kexp-v1.md with struct, zlib, hashlib and json alone. It imports nothing of this
project, so that the files are a witness of their own and not an echo of the writer they test.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENTRY = 80
DTYPES = {"u8": (2, 8), "u32": (6, 32), "f16": (10, 16), "bf16": (11, 16), "f32": (12, 32)}
PROJECTIONS = {"gate": 1, "up": 2, "gate_up": 3, "down": 4, "fc1": 5, "fc2": 6}
ROLES = {"weight": 1, "scales": 2, "biases": 3, "bias": 4, "global_scale": 5}
MODES = {"none": 1, "affine": 2, "mxfp4": 3, "mxfp8": 4, "nvfp4": 5}
MAX_JSON_VALUES = 1 << 18
CRITICAL = {b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS"}

Files = dict[str, bytearray]


# ---- bytes ----


def round_up(value: int, align: int) -> int:
    return -(-value // align) * align


def spell(document: Any) -> bytes:
    """Canonical JSON."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def weights(name: str, length: int) -> bytes:
    """Bytes that are the same everywhere and no two alike."""
    out = b""
    while len(out) < length:
        out += hashlib.sha256(f"{name} {len(out)}".encode()).digest()
    return out[:length]


# dtype -> (bytes of an element, its last byte): numbers of about 0.01.
SMALL = {"f16": (2, 0x20), "bf16": (2, 0x3C), "f32": (4, 0x3C)}


def part_weights(name: str, part: Part) -> bytes:
    """Bytes for a part; floats are small numbers, so that a row of weights can be looked at."""
    out = bytearray(weights(name, part.length))
    if part.dtype in SMALL:
        size, last = SMALL[part.dtype]
        sign = 0x80 if part.role == "biases" else 0
        out[size - 1 :: size] = bytes([last | sign]) * (len(out) // size)
    return bytes(out)


def tree(items: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1."""
    if len(items) == 1:
        return hashlib.sha256(b"\0" + items[0]).digest()
    split = 1
    while split * 2 < len(items):
        split *= 2
    return hashlib.sha256(b"\1" + tree(items[:split]) + tree(items[split:])).digest()


# ---- what a set is made of ----


@dataclass
class Part:
    projection: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    mode: str = "none"
    bits: int = 0
    group_size: int = 0

    @property
    def length(self) -> int:
        count = 1
        for dim in self.shape:
            count *= dim
        return count * DTYPES[self.dtype][1] // 8


@dataclass
class Layout:
    parts: list[Part]

    @property
    def offsets(self) -> list[int]:
        offsets, end = [], 0
        for part in self.parts:
            offsets.append(round_up(end, 128))
            end = offsets[-1] + part.length
        return offsets

    @property
    def payload(self) -> int:
        return self.offsets[-1] + self.parts[-1].length

    @property
    def block(self) -> int:
        return round_up(self.payload, 16384)

    def pack(self, number: int) -> bytes:
        out = struct.pack("<HHIQQQ", number, len(self.parts), 0, self.payload, self.block, 0)
        for part, offset in zip(self.parts, self.offsets, strict=True):
            rows, cols = (*part.shape, 1, 1)[:2]
            out += struct.pack(
                "<BBBBBBHIIQQ",
                PROJECTIONS[part.projection],
                ROLES[part.role],
                DTYPES[part.dtype][0],
                MODES[part.mode],
                len(part.shape),
                part.bits,
                part.group_size,
                rows,
                cols,
                offset,
                part.length,
            )
        return out


@dataclass
class Model:
    """What goes into a set. `layers`: number -> (layout, experts); `shards`: layers of each."""

    layouts: list[Layout]
    layers: dict[int, tuple[int, int]]
    dense: list[tuple[str, str, tuple[int, ...], bytes]]
    meta: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    shards: list[list[int]] | None = None
    part_bytes: Callable[[int, int, Part], bytes] | None = None

    def block(self, layer: int, expert: int) -> bytes:
        layout = self.layouts[self.layers[layer][0]]
        out = bytearray(layout.block)
        for part, offset in zip(layout.parts, layout.offsets, strict=True):
            if self.part_bytes is None:
                name = f"{layer} {expert} {part.projection}.{part.role}"
                data = part_weights(name, part)
            else:
                data = self.part_bytes(layer, expert, part)
            out[offset : offset + part.length] = data
        return bytes(out)

    def dense_image(self) -> bytes:
        header, data = {}, b""
        for name, dtype, shape, raw in self.dense:
            header[name] = {
                "dtype": dtype.upper(),
                "shape": list(shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(round_up(8 + len(text), 128) - 8)
        return struct.pack("<Q", len(text)) + text + data

    def document(self) -> dict[str, Any]:
        image = self.dense_image()
        header = image[: 8 + struct.unpack_from("<Q", image)[0]]
        return {
            "activation": "silu",
            "architecture": "tiny",
            "dense_header": {"sha256": hashlib.sha256(header).hexdigest(), "size": len(header)},
            "hidden_size": 32,
            "layers": [
                {"layer": layer, "layout": layout, "num_experts": count, "prefix": f"h.{layer}"}
                for layer, (layout, count) in self.layers.items()
            ],
            "quantization": None,
            "source": {},
            "top_k": 1,
        } | self.meta


@dataclass
class Section:
    """A section to be placed; `stored` differs from `raw` when it is compressed."""

    tag: bytes
    raw: bytes
    stored: bytes | None = None


def model_sections(model: Model, layers: Sequence[int]) -> dict[bytes, bytes]:
    layouts = b"".join(layout.pack(number) for number, layout in enumerate(model.layouts))
    entries, blocks = b"", b""
    for layer in layers:
        layout, count = model.layers[layer]
        for expert in range(count):
            block = model.block(layer, expert)
            payload = block[: model.layouts[layout].payload]
            # The offset is counted from the start of BLKS until that is placed.
            entries += struct.pack("<HHHHQQ", layer, expert, layout, 0, len(blocks), len(block))
            entries += struct.pack("<II", zlib.crc32(payload), 0)
            entries += hashlib.sha256(payload).digest()
            blocks += block
    return {
        b"META": spell(model.document()),
        b"LAYT": struct.pack("<I12x", len(model.layouts)) + layouts,
        b"EXPT": entries,
        b"DENS": model.dense_image(),
        b"BLKS": blocks,
    }


def place(number: int, count: int, sections: Sequence[Section]) -> bytearray:
    """Return a shard with its sections placed; `seal` puts in what depends on content."""
    out = bytearray(4096 + ENTRY * len(sections))
    for index, section in enumerate(sections):
        stored = section.raw if section.stored is None else section.stored
        out += bytes(-len(out) % (16384 if section.tag in (b"DENS", b"BLKS") else 128))
        codec = 0 if section.stored is None else 1
        lengths = (len(out), len(stored), len(section.raw))
        digest = hashlib.sha256(section.raw).digest()
        crc32 = zlib.crc32(stored)
        if section.tag == b"BLKS":
            move_index(out, len(out))
            digest, crc32 = blocks_root(out), 0
        struct.pack_into(
            "<4sIQQQII32sQ",
            out,
            4096 + ENTRY * index,
            section.tag,
            codec,
            *lengths,
            crc32,
            0,
            digest,
            0,
        )
        out += stored
    struct.pack_into(
        "<8sHHIQQQIIIIQI",
        out,
        0,
        b"\x89KEXP\r\n\x1a",
        1,
        0,
        4096,
        0,
        0,
        len(out),
        16384,
        128,
        number,
        count,
        4096,
        len(sections),
    )
    return out


def table(data: bytearray) -> dict[bytes, tuple[int, int, int, int]]:
    """Return tag -> (position of the entry, codec, offset, stored length)."""
    found = {}
    for at in range(4096, 4096 + ENTRY * struct.unpack_from("<I", data, 64)[0], ENTRY):
        tag, codec, offset, stored = struct.unpack_from("<4sIQQ", data, at)
        if tag and tag not in found:
            found[tag] = at, codec, offset, stored
    return found


def index_rows(data: bytearray) -> list[int]:
    entries = table(data)
    if b"EXPT" not in entries:
        return []
    _, _, offset, stored = entries[b"EXPT"]
    return list(range(offset, offset + stored, 64))


def move_index(data: bytearray, base: int) -> None:
    struct.pack_into("<I", data, 64, (struct.unpack_from("<Q", data, 4104)[0] - 4096) // ENTRY)
    for row in index_rows(data):
        (offset,) = struct.unpack_from("<Q", data, row + 8)
        struct.pack_into("<Q", data, row + 8, base + offset)


def blocks_root(data: bytearray) -> bytes:
    return tree([bytes(data[row + 32 : row + 64]) for row in index_rows(data)])


def shard_name(number: int, count: int) -> str:
    return "model.kexp" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.kexp"


def make(model: Model, change: Callable[[list[Section]], list[Section]] | None = None) -> Files:
    """Return the files of the set, sealed. `change`: another list of sections, of every shard."""
    tags: list[tuple[tuple[bytes, ...], list[int]]]
    if model.shards is None:
        tags = [((b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS"), list(model.layers))]
    else:
        tags = [((b"META", b"LAYT", b"DENS"), [])]
        tags += [((b"LAYT", b"EXPT", b"BLKS"), layers) for layers in model.shards]
    files: Files = {name: bytearray(data) for name, data in model.files.items()}
    for number, (wanted, layers) in enumerate(tags):
        raws = model_sections(model, layers)
        sections = [Section(tag, raws[tag]) for tag in wanted]
        if change is not None:
            sections = change(sections)
        files[shard_name(number, len(tags))] = place(number, len(tags), sections)
    seal(files)
    return files


def seal(
    files: Files,
    *,
    sections: bool = True,
    blocks: bool = True,
    tables: bool = True,
    roots: bool = True,
    headers: bool = True,
    manifest: bool = True,
) -> None:
    """Put right every checksum and root, in the order in which they depend on one another."""
    names = sorted(name for name in files if name.endswith(".kexp"))
    for name in names:
        data = files[name]
        for tag, (at, codec, offset, stored) in table(data).items():
            if not sections or tag == b"BLKS" or codec or offset + stored > len(data):
                continue
            raw = bytes(data[offset : offset + stored])
            struct.pack_into("<I", data, at + 32, zlib.crc32(raw))
            data[at + 40 : at + 72] = hashlib.sha256(raw).digest()
        if blocks and b"BLKS" in table(data) and index_rows(data):
            at = table(data)[b"BLKS"][0]
            data[at + 40 : at + 72] = blocks_root(data)
        if tables:
            end = 4096 + ENTRY * struct.unpack_from("<I", data, 64)[0]
            struct.pack_into("<I", data, 68, zlib.crc32(bytes(data[4096:end])))
        if roots:
            data[104:136] = shard_root(data)
    if roots:
        set_root = tree([bytes(files[name][104:136]) for name in names])
        for name in names:
            files[name][72:104] = set_root
    if headers:
        for name in names:
            data = files[name]
            struct.pack_into("<I", data, 4092, zlib.crc32(bytes(data[:4092])))
    if manifest:
        files["kexp.json"] = bytearray(spell(make_manifest(files, names)))


def shard_root(data: bytearray) -> bytes:
    ends = 4096 + ENTRY * struct.unpack_from("<I", data, 64)[0]
    return tree(
        [
            bytes(data[0:24] + data[40:56]),
            *(
                bytes(data[at : at + 4] + data[at + 24 : at + 32] + data[at + 40 : at + 72])
                for at in range(4096, ends, ENTRY)
                if data[at : at + 1].isupper()
            ),
        ]
    )


UNPINNED = {"README.md", "LICENSE", "notes.txt", "kexp.json"}


def make_manifest(files: Files, names: Sequence[str]) -> dict[str, Any]:
    return {
        "files": [
            {
                "name": name,
                "sha256": hashlib.sha256(files[name]).hexdigest(),
                "size": len(files[name]),
            }
            for name in sorted(files)
            if not name.endswith(".kexp") and name not in UNPINNED
        ],
        "format": "kexp",
        "set_root": bytes(files[names[0]][72:104]).hex(),
        "shards": [
            {
                "name": name,
                "shard_root": bytes(files[name][104:136]).hex(),
                "size": len(files[name]),
            }
            for name in names
        ],
        "version": 1,
    }


# ---- the models ----


def quantized(
    projection: str, rows: int, cols: int, mode: str, bits: int, group: int, scales: str
) -> list[Part]:
    coding = (mode, bits, group)
    roles = ("scales", "biases") if mode == "affine" else ("scales",)
    return [
        Part(projection, "weight", "u32", (rows, cols * bits // 32), *coding),
        *(Part(projection, role, scales, (rows, cols // group), *coding) for role in roles),
    ]


def swiglu(bits: int, group: int = 32, scales: str = "bf16") -> Layout:
    parts = []
    for projection in ("gate", "up", "down"):
        parts += quantized(projection, 32, max(32, group), "affine", bits, group, scales)
    return Layout(parts)


PLAIN = Layout([Part("fc1", "weight", "f16", (1, 2)), Part("fc2", "weight", "f16", (2, 1))])
DENSE: list[tuple[str, str, tuple[int, ...], bytes]] = [("a", "u8", (3,), b"abc")]


def counted(layer: int, expert: int, part: Part) -> bytes:
    start = 1 + 8 * expert + (4 if part.projection == "fc2" else 0)
    return bytes(range(start, start + 4))


def tiny(experts: int = 1, **changes: Any) -> Model:
    """The worked example of the specification has two experts; most bad sets have one."""
    meta = {"activation": "relu", "hidden_size": 2} | changes
    return Model([PLAIN], {3: (0, experts)}, DENSE, meta, part_bytes=counted)


def sharded() -> Model:
    """Three shards; two layouts; a gap between the layers."""
    return Model(
        [swiglu(4), swiglu(8, 64, "f16")],
        {0: (0, 2), 2: (1, 1)},
        [("embed.weight", "bf16", (8, 8), weights("embed", 128)), *DENSE],
        {"quantization": {"bits": 4, "group_size": 32}},
        {"config.json": b'{"model_type":"tiny"}'},
        [[0], [2]],
    )


def rows_of_zstd(raw: bytes) -> bytes:
    """Return zstd blocks for `raw`: runs of 64 or more as RLE blocks, the rest as raw blocks."""
    blocks: list[tuple[int, bytes, int]] = []
    at = 0
    while at < len(raw):
        run = 1
        while at + run < len(raw) and raw[at + run] == raw[at]:
            run += 1
        if run >= 64:
            blocks.append((1, raw[at : at + 1], run))
            at += run
            continue
        end = at + 1
        while end < len(raw) and raw[end : end + 64] != raw[end : end + 1] * 64:
            end += 1
        blocks.append((0, raw[at:end], end - at))
        at = end
    out = b""
    for index, (kind, data, size) in enumerate(blocks):
        head = size << 3 | kind << 1 | (index == len(blocks) - 1)
        out += struct.pack("<I", head)[:3] + data
    return out


ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_BLOCK_BYTES = 128 << 10


def frame(raw: bytes) -> bytes:
    """A single-segment frame: descriptor 0xA0, four bytes of content size."""
    return ZSTD_MAGIC + b"\xa0" + struct.pack("<I", len(raw)) + rows_of_zstd(raw)


def frame_of_pairs(raw: bytes, begin: int, end: int) -> bytes:
    """Return a frame for `raw`, of which begin..end is two bytes over and over.

    All but the first pair of them are compressed blocks of no literals and one sequence: a match at
    distance 2, of 65539 bytes or more. The three codes of the sequence are tables of one entry.
    """
    plain, left = raw[: begin + 2], end - begin - 2
    blocks = [(0, len(plain), plain)]
    while left:
        length = -(-left // -(-left // ZSTD_BLOCK_BYTES))  # all about equal
        bits = 1 << 18 | 1 << 16 | (length - 65539)  # end mark, distance 2 (+ 3 is 4 + 1), length
        body = b"\x00" + b"\x01\x54" + bytes((0, 2, 52)) + struct.pack("<I", bits)[:3]
        blocks.append((2, len(body), body))
        left -= length
    blocks.append((0, len(raw) - end, raw[end:]))
    out = ZSTD_MAGIC + b"\xa0" + struct.pack("<I", len(raw))
    for kind, size, body in blocks:
        is_last = body is blocks[-1][2]
        out += struct.pack("<I", size << 3 | kind << 1 | is_last)[:3] + body
    return out


def many_values(count: int) -> Files:
    """Return a set whose META is a document of `count` values, most of them ones in a list.

    Compressed, so that half a megabyte is a few hundred bytes.
    """

    def values(item: Any) -> int:
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return 1 + sum(values(each) for each in inner)

    num_ones = count - values(tiny(note=[]).document())

    def encode(raw: bytes) -> bytes:
        begin = raw.index(b"[1,1,") + 1
        return frame_of_pairs(raw, begin, begin + 2 * num_ones - 2)

    return make(tiny(note=[1] * num_ones), compress(b"META", encode))


def compress(tag: bytes, encode: Callable[[bytes], bytes] = frame) -> Callable[..., list[Section]]:
    def change(sections: list[Section]) -> list[Section]:
        return [
            Section(each.tag, each.raw, encode(each.raw)) if each.tag == tag else each
            for each in sections
        ]

    return change


def append(*more: Section) -> Callable[..., list[Section]]:
    return lambda sections: [*sections, *more]


LONG = "z" * 400


# ---- the cases ----


@dataclass
class Case:
    """A set and what is to be said about it. writer: the reference writer makes the same bytes."""

    name: str
    files: Mapping[str, bytes | bytearray]
    note: str
    code: str | None = None
    level: str = "open"
    writer: bool = False


def valid_cases() -> list[Case]:
    floating = Layout(
        quantized("gate", 32, 32, "mxfp4", 4, 32, "u8")
        + quantized("up", 32, 32, "mxfp8", 8, 32, "u8")
        + quantized("down", 32, 32, "nvfp4", 4, 16, "u8")
        + [Part("down", "global_scale", "f32", (), "nvfp4", 4, 16)]
    )
    biased = Layout(
        [
            *quantized("gate_up", 64, 32, "affine", 4, 32, "f32"),
            Part("gate_up", "bias", "f32", (64,)),
            *quantized("down", 32, 32, "affine", 4, 32, "f32"),
            Part("down", "bias", "bf16", (32,)),
        ]
    )
    mixed = Layout(
        quantized("gate", 32, 32, "affine", 3, 32, "bf16")
        + quantized("up", 32, 64, "affine", 5, 64, "f16")
        + quantized("down", 32, 128, "affine", 6, 128, "f32")
    )
    unquantized = Layout(
        [
            Part("gate", "weight", "bf16", (5, 7)),
            Part("up", "weight", "f16", (5, 7)),
            Part("down", "weight", "f32", (7, 5)),
        ]
    )
    dense = [
        ("wide", "f32", (8, 4), weights("wide", 128)),
        ("empty", "f32", (0, 4), b""),
        ("ints", "u32", (3,), weights("ints", 12)),
        ("scalar", "f32", (), weights("scalar", 4)),
        ("half", "f16", (3,), weights("half", 6)),
        ("bytes", "u8", (5,), weights("bytes", 5)),
    ]
    files = {
        "README.md": b"edited after publishing",
        "config.json": b'{"model_type":"tiny","rope_theta":1e6}\n',
        "tokenizer.json": b"{}",
    }
    source = {
        "files": {"model.safetensors": {"sha256": "0" * 64, "size": 12345}},
        "repository": "someone/tiny",
        "revision": None,
    }
    spelled: dict[str, Any] = {
        "later.key_1-a": [True, None, -1, 9007199254740991, '"\\/\n\u0001\u007f\u2028ü😀'],
        "counts": {"experts": 1},
        "tensors": {"model.safetensors": ["a", "h.3.fc1.weight", "h.3.fc2.weight"]},
        "source": source,
    }
    three = {3: (0, 1)}
    return [
        Case("single", make(tiny(2)), "the worked example of the specification", writer=True),
        Case(
            "quantized",
            make(Model([swiglu(4)], three, DENSE, {"source": source}, files)),
            "affine 4-bit gate, up, down; other files, one of them outside kexp.json",
            writer=True,
        ),
        Case(
            "shards",
            make(sharded()),
            "three shards, two layouts of 4 and 8 bits, layers 0 and 2",
            writer=True,
        ),
        Case(
            "two-layouts",
            make(Model([swiglu(2), PLAIN], {0: (0, 1), 7: (1, 1)}, DENSE)),
            "two layers with different layouts in one file",
            writer=True,
        ),
        Case(
            "mixed-bits",
            make(Model([mixed], three, DENSE)),
            "3, 5 and 6 bits, groups of 32, 64 and 128, three types of scales in one expert",
            writer=True,
        ),
        Case(
            "floating-modes",
            make(Model([floating], three, DENSE)),
            "mxfp4, mxfp8, nvfp4 with a global scale",
            writer=True,
        ),
        Case(
            "bias",
            make(Model([biased], three, DENSE)),
            "gate_up and down, each with a bias",
            writer=True,
        ),
        Case(
            "unquantized",
            make(Model([unquantized], three, DENSE)),
            "bf16, f16 and f32 weights of odd sizes",
            writer=True,
        ),
        Case(
            "dense-types",
            make(Model([PLAIN], three, dense)),
            "dense tensors: aligned, empty, scalar, odd sizes",
            writer=True,
        ),
        Case("no-dense", make(Model([PLAIN], three, [])), "no dense tensor at all", writer=True),
        Case(
            "meta-spelling",
            make(tiny(**spelled)),
            "unknown key, every escape, the largest integer",
            writer=True,
        ),
        Case(
            "zstd-meta",
            make(tiny(note=LONG), compress(b"META")),
            "META as one zstd frame; same roots as if it were raw",
        ),
        Case(
            "zstd-json-values",
            many_values(MAX_JSON_VALUES),
            "META of 2^18 values, as many as may be",
        ),
        Case(
            "zstd-ancillary",
            make(tiny(), append(Section(b"prov", LONG.encode(), frame(LONG.encode())))),
            "a compressed ancillary section",
        ),
        Case(
            "ancillary",
            make(tiny(), append(Section(b"zZZz", b"later"), Section(b"prov", b"{}"))),
            "an unknown ancillary section, and one before it in the alphabet behind it",
        ),
        Case(
            "compat-bit",
            changed(tiny(), poke(24, "<Q", 1 << 63 | 1)),
            "unknown bits of compat_features",
        ),
        Case("minor-version", changed(tiny(), poke(10, "<H", 7)), "version 1.7"),
        Case(
            "spare-layouts",
            make(Model([PLAIN, PLAIN, swiglu(4)], three, DENSE)),
            "two equal layouts and one that no layer uses",
        ),
        Case(
            "dense-spelling",
            dense_text(
                b'{ "b":{"data_offsets":[3,4],"shape":[1,1],"dtype":"U8"},\n'
                b'"__metadata__":{"format":"mlx"},'
                b'"\\u0061":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}  ',
                b"abcd",
            ),
            "a safetensors header spelled otherwise, with __metadata__",
        ),
        Case(
            "other-files",
            make(tiny()) | {"notes.txt": b"mine", "model-old.bin": b"x"},
            "files that do not belong to the set beside it",
        ),
        Case(
            "config-python-json",
            make(file_model('{"a":[0.0,Infinity],"a":NaN}')),
            "config.json as Python writes it",
        ),
    ]


def file_model(config: str) -> Model:
    model = tiny()
    model.files = {"config.json": config.encode("latin-1")}
    return model


Poke = Callable[[bytearray], None]


def poke(offset: int, layout: str, *values: Any) -> Poke:
    """Overwrite a field of the superblock."""
    return lambda data: struct.pack_into(layout, data, offset, *values)


def entry(tag: bytes, offset: int, layout: str, *values: Any) -> Poke:
    """Overwrite a field of a section's table entry."""
    return lambda data: struct.pack_into(layout, data, table(data)[tag][0] + offset, *values)


def inside(tag: bytes, offset: int, layout: str, *values: Any) -> Poke:
    """Overwrite a field inside a section."""
    return lambda data: struct.pack_into(layout, data, table(data)[tag][2] + offset, *values)


def changed(model: Model, *pokes: Poke, shard: int = 0, **seals: bool) -> Files:
    """Return the set with fields of one shard overwritten, sealed again as `seals` say."""
    files = make(model)
    name = sorted(name for name in files if name.endswith(".kexp"))[shard]
    for each in pokes:
        each(files[name])
    seal(files, **seals)
    return files


def meta_text(encode: Callable[[bytes], bytes], *, model: Model | None = None) -> Files:
    """Return a set whose META is other bytes."""

    def change(sections: list[Section]) -> list[Section]:
        return [
            Section(each.tag, encode(each.raw)) if each.tag == b"META" else each
            for each in sections
        ]

    return make(model or tiny(), change)


def meta_changed(edit: Callable[[dict[str, Any]], Any], *, experts: int = 1) -> Files:
    def encode(raw: bytes) -> bytes:
        document = json.loads(raw)
        edit(document)
        return spell(document)

    return meta_text(encode, model=tiny(experts))


def dense_text(text: bytes, data: bytes = b"abc", *, length: int | None = None) -> Files:
    """Return a set with this safetensors header, pinned by META unless its length is a lie."""
    image = struct.pack("<Q", len(text) if length is None else length) + text + data

    def change(sections: list[Section]) -> list[Section]:
        pin = {
            "sha256": hashlib.sha256(image[: 8 + len(text)]).hexdigest(),
            "size": 8 + len(text),
        }
        raws = {each.tag: each.raw for each in sections}
        raws[b"META"] = spell(json.loads(raws[b"META"]) | {"dense_header": pin})
        raws[b"DENS"] = image
        return [Section(each.tag, raws[each.tag]) for each in sections]

    return make(tiny(), change)


def sections_text(*tags: bytes) -> Files:
    """Return a one-shard set with these sections, whatever they are."""
    note = Section(b"prov", b"note")

    def change(sections: list[Section]) -> list[Section]:
        known = {each.tag: each for each in sections}
        return [known.get(tag, Section(tag, note.raw)) for tag in tags]

    return make(tiny(), change)


def manifest_changed(edit: Callable[[dict[str, Any]], Any], model: Model | None = None) -> Files:
    files = make(model or tiny())
    document = json.loads(files["kexp.json"])
    edit(document)
    files["kexp.json"] = bytearray(spell(document))
    return files


def with_files(files: Files, **changes: Any) -> Files:
    """Return `files` with some replaced (bytes) or removed (None); `_` in a key is a dot."""
    out = dict(files)
    for key, data in changes.items():
        name = key.replace("_", ".")
        if data is None:
            del out[name]
        else:
            out[name] = bytearray(data)
    return out


def damaged(model: Model, place_of: Callable[[bytearray], int], value: int = 1) -> Files:
    """Return the set with bits of one byte flipped after everything was sealed."""
    files = make(model)
    data = files[sorted(name for name in files if name.endswith(".kexp"))[-1]]
    data[place_of(data)] ^= value
    return files


def start(tag: bytes, offset: int = 0) -> Callable[[bytearray], int]:
    return lambda data: table(data)[tag][2] + offset


def file_cases() -> list[Case]:
    base = make(tiny())
    shards = make(sharded())
    other = make(tiny(top_k=1, note="of another set"))
    renamed = dict(shards)
    renamed["model-00003-of-00003.kexp"] = shards["model-00002-of-00003.kexp"]
    config = file_model('{"model_type":"tiny"}')
    return [
        Case(
            "no-manifest",
            with_files(base, kexp_json=None),
            "kexp.json is missing",
            "E_FILE_MISSING",
        ),
        Case(
            "no-shard",
            {name: data for name, data in shards.items() if "00002" not in name},
            "the second of three shards is missing",
            "E_FILE_MISSING",
        ),
        Case(
            "no-config",
            with_files(make(config), config_json=None),
            "kexp.json lists a config.json that is missing",
            "E_FILE_MISSING",
            "full",
        ),
        Case("empty", with_files(base, model_kexp=b""), "a file of no bytes", "E_FILE_SIZE"),
        Case(
            "short",
            with_files(base, model_kexp=base["model.kexp"][:-1]),
            "the last byte is missing",
            "E_FILE_SIZE",
        ),
        Case(
            "long",
            with_files(base, model_kexp=base["model.kexp"] + b"\0"),
            "a byte too many",
            "E_FILE_SIZE",
        ),
        Case(
            "manifest-size",
            manifest_changed(lambda each: each["shards"][0].update(size=1)),
            "kexp.json has another size",
            "E_FILE_SIZE",
        ),
        Case(
            "config-changed",
            with_files(make(config), config_json=b'{"model_type":"Tiny"}'),
            "config.json was changed after packing, its size was not",
            "E_FILE_SHA256",
            "full",
        ),
        Case(
            "config-longer",
            with_files(make(config), config_json=b'{"model_type":"tiny" }'),
            "config.json was changed after packing",
            "E_FILE_SIZE",
            "full",
        ),
        Case("config-list", make(file_model("[]")), "config.json is a list", "E_CONFIG", "full"),
        Case("config-text", make(file_model("{\xff}")), "not UTF-8", "E_CONFIG", "full"),
        Case(
            "config-deep",
            make(file_model('{"a":' + "[" * 64 + "]" * 64 + "}")),
            "config.json is 65 deep",
            "E_CONFIG",
            "full",
        ),
        Case(
            "extra-shard",
            base | {"model-00001-of-00002.kexp": base["model.kexp"]},
            "a shard that kexp.json does not list",
            "E_SHARD_EXTRA",
        ),
        Case(
            "shard-twice",
            renamed | {"kexp.json": renamed_manifest(renamed)},
            "the second shard under the third one's name",
            "E_SHARD_NAME",
        ),
        Case(
            "foreign-shard",
            with_files(base, model_kexp=other["model.kexp"], kexp_json=foreign(base, other)),
            "a shard of another set",
            "E_SET_ROOT",
        ),
    ]


def foreign(base: Files, other: Files) -> bytes:
    """A manifest of `base` that agrees with the shard of `other` in all but the set root."""
    document = json.loads(other["kexp.json"])
    document["set_root"] = json.loads(base["kexp.json"])["set_root"]
    return spell(document)


def renamed_manifest(files: Files) -> bytearray:
    return bytearray(spell(make_manifest(files, sorted(n for n in files if n.endswith(".kexp")))))


def manifest_cases() -> list[Case]:
    edits: list[tuple[str, Callable[[dict[str, Any]], Any], str, str]] = [
        ("format", lambda m: m.update(format="safetensors"), "another format", "E_MANIFEST"),
        ("version", lambda m: m.update(version=2, later=1), "version 2", "E_VERSION"),
        ("version-true", lambda m: m.update(version=True), "true is no integer", "E_MANIFEST"),
        ("unknown-key", lambda m: m.update(comment=""), "a key more", "E_MANIFEST"),
        ("missing-key", lambda m: m.pop("files"), "a key less", "E_MANIFEST"),
        ("upper-case", lambda m: m.update(set_root=m["set_root"].upper()), "", "E_MANIFEST"),
        ("no-shards", lambda m: m.update(shards=[]), "a set of no shards", "E_MANIFEST"),
        ("path", lambda m: m["shards"][0].update(name="../model.kexp"), "", "E_MANIFEST"),
        ("digest-key", lambda m: m["shards"][0].update(sha256="0" * 64), "", "E_MANIFEST"),
        ("shard-root", lambda m: m["shards"][0].update(shard_root="0" * 64), "", "E_SHARD_ROOT"),
        ("set-root", lambda m: m.update(set_root="0" * 64), "", "E_SET_ROOT"),
    ]
    record = {"name": "config.json", "sha256": "0" * 64, "size": 1}

    def listed(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda m: m["files"].append(record | {"name": name})

    for name in ("../config.json", ".hidden", "a/b", "", "a\n", "README.md", "a.safetensors", "ü"):
        edits.append(
            (
                f"file-name-{len(edits)}",
                listed(name),
                f"a file called {name!r}",
                "E_MANIFEST",
            )
        )
    edits += [
        ("file-twice", lambda m: m["files"].extend([record, record]), "", "E_MANIFEST"),
        (
            "file-order",
            lambda m: m["files"].extend([record, record | {"name": "added.json"}]),
            "files do not ascend",
            "E_MANIFEST",
        ),
        ("file-size", lambda m: m["files"].append(record | {"size": -1}), "", "E_MANIFEST"),
    ]
    cases = [
        Case(f"manifest-{name}", manifest_changed(edit), note or name, code)
        for name, edit, note, code in edits
    ]
    text = bytes(make(tiny())["kexp.json"])
    for name, other, code in (
        ("space", text + b"\n", "E_JSON_CANONICAL"),
        ("text", b"kexp", "E_JSON"),
        ("list", b"[]", "E_MANIFEST"),
        ("null", b"null", "E_MANIFEST"),
        ("twice", text.replace(b'"version":1', b'"version":1,"version":1'), "E_JSON_DUPLICATE_KEY"),
    ):
        case = Case(f"manifest-{name}", with_files(make(tiny()), kexp_json=other), name, code)
        cases.append(case)
    return cases


def superblock_cases() -> list[Case]:
    fields: list[tuple[str, Poke, str, str]] = [
        ("magic", poke(0, "B", 0x88), "the first byte lost its high bit", "E_MAGIC"),
        ("text-mode", poke(4, "<4s", b"P\n\x1a\0"), "the magic after a text transfer", "E_MAGIC"),
        ("major", poke(8, "<H", 2), "version 2.0", "E_VERSION"),
        ("header-size", poke(12, "<I", 8192), "", "E_HEADER"),
        ("incompat-bit", poke(16, "<Q", 1 << 40), "bit 40 of incompat_features", "E_FEATURE"),
        ("file-size", poke(32, "<Q", 1 << 40), "a size the file has not", "E_FILE_SIZE"),
        ("block-align", poke(40, "<I", 4096), "", "E_HEADER"),
        ("tensor-align", poke(44, "<I", 64), "", "E_HEADER"),
        ("shard-no", poke(48, "<I", 1), "shard 1 of 1, counted from 0", "E_HEADER"),
        ("shard-count", poke(52, "<I", 4097), "too many shards", "E_HEADER"),
        ("other-count", poke(52, "<I", 2), "shard 0 of 2 called model.kexp", "E_SHARD_NAME"),
        ("section-off", poke(56, "<Q", 8192), "", "E_HEADER"),
        ("superblock-zeros", poke(4091, "B", 1), "the last of the zeros", "E_PADDING"),
    ]
    cases = [
        Case(name, changed(tiny(), each), note or name, code) for name, each, note, code in fields
    ]
    for name, count in (("no-sections", 0), ("many-sections", 65)):
        files = changed(tiny(), poke(64, "<I", count), tables=False, roots=False, sections=False,
                        blocks=False)  # fmt: skip
        cases.append(Case(name, files, f"section_count {count}", "E_HEADER"))
    return [
        *cases,
        Case(
            "header-crc", damaged(tiny(), lambda data: 4092), "header_crc differs", "E_HEADER_CRC"
        ),
        Case(
            "later-version",
            damaged(tiny(), lambda data: 8, 3),
            "version 2, and a header_crc that is not version 1's",
            "E_VERSION",
        ),
        Case(
            "shard-root",
            changed(tiny(), poke(104, "B", 0), roots=False),
            "a shard root that does not follow",
            "E_SHARD_ROOT",
        ),
        Case(
            "set-root",
            changed(tiny(), poke(72, "B", 0), roots=False),
            "a set root that does not follow, in the superblock and in kexp.json",
            "E_SET_ROOT",
        ),
        Case(
            "table-crc",
            changed(tiny(), poke(68, "<I", 0), tables=False),
            "table_crc differs",
            "E_TABLE_CRC",
        ),
        Case(
            "two-features",
            changed(sharded(), poke(16, "<Q", 1), shard=2),
            "a feature bit in the last shard only",
            "E_FEATURE",
        ),
    ]


def table_cases() -> list[Case]:
    fields: list[tuple[str, Poke, str, str]] = [
        ("tag-digit", entry(b"META", 0, "4s", b"ME1A"), "", "E_SECTION_TAG"),
        ("tag-critical", entry(b"META", 0, "4s", b"Zzzz"), "unknown and critical", "E_SECTION_TAG"),
        ("codec-unknown", entry(b"META", 4, "<I", 2), "", "E_SECTION_CODEC"),
        ("codec-index", entry(b"EXPT", 4, "<I", 1), "a compressed index", "E_SECTION_CODEC"),
        ("offset-loose", entry(b"META", 8, "<Q", 8192), "", "E_SECTION_EXTENT"),
        ("offset-overlap", entry(b"LAYT", 8, "<Q", 4608), "", "E_SECTION_EXTENT"),
        ("offset-beyond", entry(b"BLKS", 8, "<Q", 1 << 63), "", "E_SECTION_EXTENT"),
        ("section-empty", entry(b"META", 16, "<QQ", 0, 0), "", "E_SECTION_EXTENT"),
        ("raw-longer", entry(b"META", 24, "<Q", 1 << 20), "codec 0", "E_SECTION_EXTENT"),
        ("blocks-beyond", entry(b"BLKS", 16, "<QQ", 1 << 40, 1 << 40), "", "E_SECTION_EXTENT"),
        (
            "blocks-wrap",
            entry(b"BLKS", 16, "<QQ", 2**64 - 16384, 2**64 - 16384),
            "offset + length is below the file's size in 64 bits",
            "E_SECTION_EXTENT",
        ),
        ("reserved", entry(b"META", 36, "<I", 1), "", "E_PADDING"),
        ("reserved-end", entry(b"META", 72, "<Q", 1), "", "E_PADDING"),
        ("blocks-crc", entry(b"BLKS", 32, "<I", 1), "BLKS has a crc32", "E_SECTION_CRC"),
        ("section-crc", entry(b"META", 32, "<I", 1), "", "E_SECTION_CRC"),
        ("section-sha256", entry(b"META", 40, "<I", 1), "", "E_SECTION_SHA256"),
    ]
    cases = [
        Case(name, changed(tiny(), each, sections=False), note or name, code)
        for name, each, note, code in fields
    ]
    orders: list[tuple[str, tuple[bytes, ...], str]] = [
        ("order", (b"LAYT", b"META", b"EXPT", b"DENS", b"BLKS"), "LAYT before META"),
        ("lacking", (b"META", b"LAYT", b"EXPT", b"DENS"), "no BLKS"),
        ("first-of-many", (b"META", b"LAYT", b"DENS"), "the sections of a first shard alone"),
        ("early", (b"META", b"LAYT", b"EXPT", b"DENS", b"prov", b"BLKS"), "prov before BLKS"),
        ("twice", (b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS", b"prov", b"prov"), "prov twice"),
    ]
    cases += [
        Case(f"sections-{name}", sections_text(*tags), note, "E_SECTION_SET")
        for name, tags, note in orders
    ]

    def note_end(data: bytearray) -> int:
        return len(data) - 1

    for name, section, place_of, code in (
        ("ancillary-crc", Section(b"prov", b"note"), note_end, "E_SECTION_CRC"),
        ("dense-crc", Section(b"prov", b"note"), start(b"DENS", 128), "E_SECTION_CRC"),
        ("gap", Section(b"prov", b"note"), lambda data: table(data)[b"LAYT"][2] - 1, "E_PADDING"),
    ):
        files = make(tiny(), append(section))
        files["model.kexp"][place_of(files["model.kexp"])] ^= 1
        level = "open" if name == "gap" else "full"
        cases.append(Case(name, files, f"a flipped bit ({name})", code, level))
    dense_sha = changed(tiny(), entry(b"DENS", 40, "<I", 1), sections=False)
    cases.append(Case("dense-sha256", dense_sha, "sha256 of DENS", "E_SECTION_SHA256", "full"))
    return cases


def zstd_cases() -> list[Case]:
    def sized(raw: bytes) -> bytes:
        return struct.pack("<I", len(raw))

    encodings: list[tuple[str, Callable[[bytes], bytes], str, str]] = [
        ("not-zstd", lambda raw: b"x" * 40, "no magic", "E_SECTION_CODEC"),
        ("no-size", lambda raw: ZSTD_MAGIC + b"\0\x58" + rows_of_zstd(raw), "", "E_SECTION_CODEC"),
        ("other-size", lambda raw: frame(raw[:-1]), "announces a byte less", "E_SECTION_CODEC"),
        (
            "lies",
            lambda raw: ZSTD_MAGIC + b"\xa0" + sized(raw) + rows_of_zstd(raw[:-1]),
            "announces a byte more than it has",
            "E_SECTION_CODEC",
        ),
        ("behind", lambda raw: frame(raw) + b"\0", "a byte follows the frame", "E_SECTION_CODEC"),
        ("cut", lambda raw: frame(raw)[:-1], "the last byte is missing", "E_SECTION_CODEC"),
        (
            "skippable",
            lambda raw: b"\x50\x2a\x4d\x18\0\0\0\0" + frame(raw),
            "a skippable frame in front",
            "E_SECTION_CODEC",
        ),
        (
            "window",
            lambda raw: ZSTD_MAGIC + b"\x80\x70" + sized(raw) + rows_of_zstd(raw),
            "a window of 16 MiB",
            "E_SECTION_CODEC",
        ),
        (
            "dictionary",
            lambda raw: ZSTD_MAGIC + b"\xa1\x07" + sized(raw) + rows_of_zstd(raw),
            "wants dictionary 7",
            "E_SECTION_CODEC",
        ),
        (
            "checksum",
            lambda raw: ZSTD_MAGIC + b"\xa4" + frame(raw)[5:] + b"\0\0\0\0",
            "a wrong Content_Checksum",
            "E_SECTION_CODEC",
        ),
        ("content", lambda raw: frame(b" " + raw[1:]), "other content", "E_SECTION_SHA256"),
        ("larger", lambda raw: raw + b"x", "stored_len above raw_len", "E_SECTION_EXTENT"),
    ]
    cases = [
        Case(f"zstd-{name}", make(tiny(note=LONG), compress(b"META", encode)), note or name, code)
        for name, encode, note, code in encodings
    ]
    bomb = make(tiny(note=LONG), compress(b"META"))
    entry(b"META", 24, "<Q", (16 << 20) + 1)(bomb["model.kexp"])
    seal(bomb, sections=False)
    note = "raw_len of a compressed section above 16 MiB"
    cases.append(Case("zstd-limit", bomb, note, "E_LIMIT"))
    note = "META of 2^18 + 1 values"
    cases.append(Case("zstd-json-values", many_values(MAX_JSON_VALUES + 1), note, "E_JSON_VALUE"))
    prov = Section(b"prov", LONG.encode(), frame(LONG.encode())[:-1])
    ancillary = make(tiny(), append(prov))
    note = "an ancillary section that is no frame"
    cases.append(Case("zstd-ancillary", ancillary, note, "E_SECTION_CODEC", "full"))
    return cases


def json_cases() -> list[Case]:
    texts: list[tuple[str, Callable[[bytes], bytes], str]] = [
        ("json-text", lambda raw: raw[:-1], "E_JSON"),
        ("json-latin1", lambda raw: b'{"a":"\xff"}', "E_JSON"),
        ("json-surrogate-bytes", lambda raw: b'{"a":"\xed\xa0\x80"}', "E_JSON"),
        ("json-bom", lambda raw: b"\xef\xbb\xbf" + raw, "E_JSON"),
        ("json-nan", lambda raw: b'{"a":NaN}', "E_JSON"),
        ("json-control", lambda raw: b'{"a":"\n"}', "E_JSON"),
        ("json-key-twice", lambda raw: b'{"a":1,"a":1}', "E_JSON_DUPLICATE_KEY"),
        ("json-key-escaped", lambda raw: b'{"a":1,"\\u0061":1}', "E_JSON_DUPLICATE_KEY"),
        ("json-fraction", lambda raw: b'{"a":1.5}', "E_JSON_VALUE"),
        ("json-exponent", lambda raw: b'{"a":1e3}', "E_JSON_VALUE"),
        ("json-integer", lambda raw: b'{"a":9007199254740992}', "E_JSON_VALUE"),
        ("json-negative", lambda raw: b'{"a":-9007199254740992}', "E_JSON_VALUE"),
        ("json-digits", lambda raw: b'{"a":' + b"9" * 5000 + b"}", "E_JSON_VALUE"),
        ("json-surrogate", lambda raw: b'{"a":"\\ud800"}', "E_JSON_VALUE"),
        ("json-string", lambda raw: b'{"a":"' + b"x" * 4097 + b'"}', "E_JSON_VALUE"),
        ("json-deep", lambda raw: b'{"a":' + b"[" * 16 + b"]" * 16 + b"}", "E_JSON_VALUE"),
        ("json-space", lambda raw: raw.replace(b",", b", "), "E_JSON_CANONICAL"),
        ("json-order", lambda raw: b'{"b":1,"a":1}', "E_JSON_CANONICAL"),
        # U+1F600 is above U+FF21 by code points, and below it by UTF-16 units.
        ("json-utf16-order", lambda raw: '{"😀":1,"\uff21":1}'.encode(), "E_JSON_CANONICAL"),
        ("json-escape", lambda raw: b'{"a":"\\/"}', "E_JSON_CANONICAL"),
        ("json-escape-case", lambda raw: b'{"a":"\\u001F"}', "E_JSON_CANONICAL"),
        ("json-minus-zero", lambda raw: b'{"a":-0}', "E_JSON_CANONICAL"),
    ]
    return [
        Case(name, meta_text(encode), f"META: {name[5:].replace('-', ' ')}", code)
        for name, encode, code in texts
    ]


def meta_cases() -> list[Case]:
    edits: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("missing-key", lambda m: m.pop("top_k")),
        ("capital-key", lambda m: m.update(Alpha=1)),
        ("wrong-type", lambda m: m.update(architecture=None)),
        ("bool", lambda m: m.update(hidden_size=True)),
        ("hidden-size", lambda m: m.update(hidden_size=0)),
        ("top-k-zero", lambda m: m.update(top_k=0)),
        ("top-k", lambda m: m.update(top_k=2)),
        ("no-layers", lambda m: m.update(layers=[])),
        ("layer-number", lambda m: m["layers"][0].update(layer=4096)),
        ("other-layer", lambda m: m["layers"][0].update(layer=4)),
        ("other-count", lambda m: m["layers"][0].update(num_experts=2)),
        ("other-layout", lambda m: m["layers"][0].update(layout=1)),
        ("layer-more", lambda m: m["layers"].append(m["layers"][0] | {"layer": 4})),
        ("no-prefix", lambda m: m["layers"][0].pop("prefix")),
        ("pin-key", lambda m: m["dense_header"].update(more=1)),
        ("pin-digest", lambda m: m["dense_header"].update(sha256="0")),
        ("source", lambda m: m.update(source=None)),
        ("source-revision", lambda m: m["source"].update(revision=1)),
        ("source-file", lambda m: m["source"].update(files={"a": {"size": "1"}})),
        ("tensors", lambda m: m.update(tensors={"a": [1]})),
        ("counts", lambda m: m.update(counts=[])),
    ]
    cases = [
        Case(f"meta-{name}", meta_changed(edit), f"META: {name.replace('-', ' ')}", "E_META")
        for name, edit in edits
    ]
    return [
        *cases,
        Case("meta-list", meta_text(lambda raw: b"[]"), "META is a list", "E_META"),
        Case(
            "dense-pin",
            meta_changed(lambda m: m["dense_header"].update(size=8)),
            "META pins another header of DENS",
            "E_DENSE_SHA256",
        ),
    ]


def layout_cases() -> list[Case]:
    """PLAIN has one layout at 16; its two parts begin at 48 and 80."""
    fields: list[tuple[str, Poke, str, str]] = [
        ("count-zero", inside(b"LAYT", 0, "<I", 0), "", "E_LAYOUT"),
        ("count", inside(b"LAYT", 0, "<I", 2), "more layouts than there are", "E_LAYOUT"),
        ("reserved", inside(b"LAYT", 4, "B", 1), "", "E_LAYOUT"),
        ("id", inside(b"LAYT", 16, "<H", 1), "", "E_LAYOUT"),
        ("no-parts", inside(b"LAYT", 18, "<H", 0), "", "E_LAYOUT"),
        ("parts", inside(b"LAYT", 18, "<H", 1), "a part less, bytes follow", "E_LAYOUT"),
        ("payload", inside(b"LAYT", 24, "<Q", 133), "", "E_LAYOUT"),
        ("block", inside(b"LAYT", 32, "<Q", 1 << 63), "", "E_LAYOUT"),
        ("projection", inside(b"LAYT", 48, "B", 7), "", "E_LAYOUT"),
        ("role", inside(b"LAYT", 49, "B", 0), "", "E_LAYOUT"),
        ("order", inside(b"LAYT", 48, "B", 6), "a part twice", "E_LAYOUT"),
        ("dtype", inside(b"LAYT", 50, "B", 23), "", "E_DTYPE"),
        ("half-byte", inside(b"LAYT", 50, "<BBBBHII", 20, 1, 2, 0, 0, 1, 1), "", "E_DTYPE"),
        ("mode", inside(b"LAYT", 51, "B", 6), "", "E_LAYOUT"),
        ("ndim", inside(b"LAYT", 52, "B", 3), "", "E_LAYOUT"),
        ("ndim-small", inside(b"LAYT", 52, "B", 1), "cols 2 of one dimension", "E_LAYOUT"),
        ("bits", inside(b"LAYT", 53, "B", 4), "mode none with bits", "E_LAYOUT"),
        ("rows", inside(b"LAYT", 56, "<I", 0), "", "E_LAYOUT"),
        ("huge", inside(b"LAYT", 56, "<II", 2**32 - 1, 2**32 - 1), "", "E_LAYOUT"),
        ("offset", inside(b"LAYT", 64, "<Q", 128), "", "E_LAYOUT"),
        ("length", inside(b"LAYT", 72, "<Q", 5), "", "E_LAYOUT"),
        ("lone-scales", inside(b"LAYT", 81, "B", 2), "a projection without weight", "E_LAYOUT"),
    ]
    cases = [
        Case(f"layout-{name}", changed(tiny(), each), f"LAYT: {note or name}", code)
        for name, each, note, code in fields
    ]

    def refused(name: str, parts: list[Part], note: str) -> Case:
        model = Model([Layout(parts)], {3: (0, 1)}, DENSE)
        return Case(f"layout-{name}", make(model), note, "E_LAYOUT")

    good = quantized("up", 32, 32, "affine", 4, 32, "bf16")
    coding = ("affine", 4, 32)
    return [
        *cases,
        refused("no-biases", good[:2], "affine without biases"),
        refused(
            "scales-shape",
            [good[0], Part("up", "scales", "bf16", (32, 2), *coding), good[2]],
            "scales of another number of groups",
        ),
        refused(
            "scales-type",
            [good[0], Part("up", "scales", "u8", (32, 1), *coding), good[2]],
            "affine scales in u8",
        ),
        refused(
            "groups",
            [Part("up", "weight", "u32", (32, 5), *coding), *good[1:]],
            "a row of 40 elements in groups of 32",
        ),
        refused(
            "bits-7",
            [Part("up", each.role, each.dtype, each.shape, "affine", 7, 32) for each in good],
            "7 bits",
        ),
        refused(
            "global-scale",
            [*good, Part("up", "global_scale", "f32", (), *coding)],
            "a global scale in mode affine",
        ),
        refused(
            "bias-shape",
            [*good, Part("up", "bias", "f32", (31,))],
            "a bias of another number of rows",
        ),
        refused(
            "plain-scales",
            [Part("up", "weight", "f16", (4, 4)), Part("up", "scales", "f16", (4, 1))],
            "an unquantized weight with scales",
        ),
        Case(
            "layout-differs",
            layouts_differ(),
            "the layouts of a later shard are others",
            "E_LAYOUT",
        ),
    ]


def layouts_differ() -> Files:
    """Three shards, the last of which has a layout more."""
    files = make(sharded())
    longer = sharded()
    longer.layouts.append(PLAIN)
    name = "model-00003-of-00003.kexp"
    files[name] = make(longer)[name]
    seal(files)
    return files


def index_cases() -> list[Case]:
    two = tiny(2)
    fields: list[tuple[str, Poke, str]] = [
        ("layer", inside(b"EXPT", 64, "<H", 4096), "E_INDEX"),
        ("layer-descends", inside(b"EXPT", 64, "<HH", 2, 0), "E_INDEX"),
        ("expert-skipped", inside(b"EXPT", 66, "<H", 2), "E_INDEX"),
        ("expert-twice", inside(b"EXPT", 66, "<H", 0), "E_INDEX"),
        ("expert-first", inside(b"EXPT", 2, "<H", 1), "E_INDEX"),
        ("layout", inside(b"EXPT", 4, "<H", 1), "E_INDEX"),
        ("flags", inside(b"EXPT", 6, "<H", 1), "E_INDEX"),
        ("reserved", inside(b"EXPT", 28, "<I", 1), "E_INDEX"),
        ("offset", inside(b"EXPT", 8, "<Q", 16384), "E_INDEX_EXTENT"),
        ("overlap", inside(b"EXPT", 72, "<Q", 32768), "E_INDEX_EXTENT"),
        ("beyond", inside(b"EXPT", 72, "<Q", 2**64 - 16384), "E_INDEX_EXTENT"),
        ("length", inside(b"EXPT", 16, "<Q", 32768), "E_INDEX_EXTENT"),
    ]
    cases = [
        Case(f"index-{name}", changed(two, each), f"EXPT: {name.replace('-', ' ')}", code)
        for name, each, code in fields
    ]

    def cut(length: int) -> Callable[..., list[Section]]:
        return lambda sections: [
            Section(each.tag, each.raw[:-length]) if each.tag == b"EXPT" else each
            for each in sections
        ]

    descending = sharded()
    descending.shards = [[2], [0]]
    return [
        *cases,
        Case("index-short", make(two, cut(64)), "an entry less than blocks", "E_INDEX_EXTENT"),
        Case("index-odd", odd_index(), "63 bytes", "E_INDEX"),
        Case(
            "layers-descend",
            make(descending),
            "layer 2 in the second shard, layer 0 in the third",
            "E_INDEX",
        ),
        Case(
            "blocks-root",
            changed(tiny(), entry(b"BLKS", 40, "<I", 1), blocks=False),
            "sha256 of BLKS does not follow from EXPT",
            "E_BLOCKS_ROOT",
            "full",
        ),
        Case(
            "block-crc",
            damaged(sharded(), start(b"BLKS", 7)),
            "a flipped bit in a weight",
            "E_BLOCK_CRC",
            "full",
        ),
        Case(
            "block-inner-padding",
            damaged(tiny(), start(b"BLKS", 4)),
            "a flipped bit between two parts",
            "E_BLOCK_CRC",
            "full",
        ),
        Case(
            "block-sealed-padding",
            inner_padding(),
            "bytes between two parts that are not zero, with right checksums",
            "E_PADDING",
            "full",
        ),
        Case(
            "block-padding",
            damaged(tiny(), start(b"BLKS", 16383)),
            "a flipped bit behind the payload",
            "E_PADDING",
            "full",
        ),
        Case(
            "block-sha256",
            block_sha256(),
            "another payload with its crc32 put right",
            "E_BLOCK_SHA256",
            "full",
        ),
    ]


def odd_index() -> Files:
    """An index of 63 bytes; the offset inside its one entry stays what it was."""
    files = make(tiny())
    data = files["model.kexp"]
    entry(b"EXPT", 16, "<QQ", 63, 63)(data)
    data[table(data)[b"EXPT"][2] + 63] = 0  # padding from here on
    seal(files, blocks=False)
    return files


def inner_padding() -> Files:
    files = make(tiny())
    data = files["model.kexp"]
    data[start(b"BLKS", 4)(data)] = 1
    payload = bytes(data[start(b"BLKS")(data) :][: PLAIN.payload])
    inside(b"EXPT", 24, "<I", zlib.crc32(payload))(data)
    inside(b"EXPT", 32, "32s", hashlib.sha256(payload).digest())(data)
    seal(files)
    return files


def block_sha256() -> Files:
    files = make(tiny())
    data = files["model.kexp"]
    data[start(b"BLKS")(data)] ^= 1
    payload = bytes(data[start(b"BLKS")(data) :][: PLAIN.payload])
    inside(b"EXPT", 24, "<I", zlib.crc32(payload))(data)
    seal(files)
    return files


def dense_cases() -> list[Case]:
    def one(text: str) -> bytes:
        return ('{"a":{' + text + "}}").encode()

    good = '"dtype":"U8","shape":[3],"data_offsets":[0,3]'
    huge = '"dtype":"U8","shape":[9007199254740991,2,0],"data_offsets":[0,0]'
    many = '"dtype":"U8","shape":[3' + ",1" * 32 + '],"data_offsets":[0,3]'
    texts: list[tuple[str, bytes, bytes, str]] = [
        ("list", b"[]", b"", "E_DENSE"),
        ("leading-space", b" " + one(good), b"abc", "E_DENSE"),
        ("text", b"{", b"", "E_JSON"),
        ("fraction", one(good.replace("[3]", "[3.0]")), b"abc", "E_JSON_VALUE"),
        ("minus-zero", one(good.replace("[0,", "[-0,")), b"abc", "E_JSON_VALUE"),
        ("twice", b'{"a":{' + good.encode() + b'},"a":{}}', b"abc", "E_JSON_DUPLICATE_KEY"),
        ("key", one(good + ',"x":1'), b"abc", "E_DENSE"),
        ("lower-case", one(good.replace("U8", "u8")), b"abc", "E_DTYPE"),
        ("half-byte", one(good.replace("U8", "F4")), b"abc", "E_DTYPE"),
        ("hole", one(good.replace("[0,3]", "[1,4]")), b"abcd", "E_DENSE"),
        (
            "overlap",
            b'{"a":{' + good.encode() + b'},"b":{' + good.encode() + b"}}",
            b"abc",
            "E_DENSE",
        ),
        ("length", one(good.replace("[3]", "[4]")), b"abc", "E_DENSE"),
        ("backwards", one(good.replace("[0,3]", "[3,0]")), b"abc", "E_DENSE"),
        ("more", one(good), b"abcd", "E_DENSE"),
        ("less", one(good), b"ab", "E_DENSE"),
        ("huge", one(huge), b"", "E_DENSE"),
        ("dims", one(many), b"abc", "E_DENSE"),
        ("metadata", b'{"__metadata__":{"a":1}}', b"", "E_DENSE"),
    ]
    return [
        *(
            Case(f"dense-{name}", dense_text(text, data), f"DENS: {name.replace('-', ' ')}", code)
            for name, text, data, code in texts
        ),
        Case(
            "dense-header-leaves",
            dense_text(b"{}", b"", length=3),
            "a header longer than the section",
            "E_DENSE",
        ),
        Case(
            "dense-header-limit",
            dense_text(b"{}", b"", length=(16 << 20) + 1),
            "a header above 16 MiB",
            "E_LIMIT",
        ),
    ]


def invalid_cases() -> list[Case]:
    return [
        *file_cases(),
        *manifest_cases(),
        *superblock_cases(),
        *table_cases(),
        *zstd_cases(),
        *json_cases(),
        *meta_cases(),
        *layout_cases(),
        *index_cases(),
        *dense_cases(),
    ]


WITHOUT_VECTOR = {
    "E_IO": "what the system cannot read depends on the system",
    "E_FILE_CHANGED": "needs a file that changes while it is open",
    "E_FILE_NAME": "refused by a writer",
    "E_EXISTS": "refused by a writer",
    "E_PLAN": "refused by a writer",
    "E_NO_EXPERT": "the caller's mistake",
    "E_NO_TENSOR": "the caller's mistake",
}


def all_files() -> dict[str, bytes]:
    """Return path beneath the folder -> content."""
    out: dict[str, bytes] = {}
    lines = []
    for verdict, cases in (("valid", valid_cases()), ("invalid", invalid_cases())):
        for case in cases:
            path = f"{verdict}/{case.name}"
            if any(name.startswith(path + "/") for name in out):
                raise ValueError(f"two cases are called {path}")
            for name, data in case.files.items():
                out[f"{path}/{name}"] = bytes(data)
            record = {"path": path, "verdict": verdict, "level": case.level, "code": case.code}
            lines.append(json.dumps(record | {"writer": case.writer, "note": case.note}))
    text = ",\n  ".join(lines)
    codes = json.dumps(WITHOUT_VECTOR, indent=2)
    out["cases.json"] = f'{{"cases": [\n  {text}\n],\n"codes_without_vector": {codes}}}\n'.encode()
    sums = (f"{hashlib.sha256(out[path]).hexdigest()}  {path}\n" for path in sorted(out))
    out["SHA256SUMS"] = "".join(sums).encode()
    return out


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("vectors")
    for verdict in ("valid", "invalid"):
        shutil.rmtree(folder / verdict, ignore_errors=True)
    for path, data in all_files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


if __name__ == "__main__":
    main()
