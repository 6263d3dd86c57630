"""What goes into a set: layouts, experts, dense tensors, documents."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

DTYPES = {"u8": (2, 8), "u32": (6, 32), "f16": (10, 16), "bf16": (11, 16), "f32": (12, 32)}
PROJECTIONS = {"gate": 1, "up": 2, "gate_up": 3, "down": 4, "fc1": 5, "fc2": 6}
ROLES = {"weight": 1, "scales": 2, "biases": 3, "bias": 4, "global_scale": 5}
MODES = {"none": 1, "affine": 2, "mxfp4": 3, "mxfp8": 4, "nvfp4": 5}


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
