"""GGUF and safetensors files built with struct, so that any count in them can be a lie."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass, field

from fuzz.odd_values import odd_number, scramble

_SCALAR_BYTES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)


@dataclass
class Number:
    """A count, length, type or offset: `format` as in struct, and the value that is right."""

    format: str
    value: int


@dataclass
class GgufModel:
    """A file as numbers and bytes, in order; numbers are what a mutator lies about."""

    pieces: list[Number | bytes] = field(default_factory=list)

    def string(self, text: bytes) -> None:
        self.pieces += [Number("<Q", len(text)), text]

    def build(self) -> bytes:
        return b"".join(
            piece if isinstance(piece, bytes) else _packed(piece) for piece in self.pieces
        )


def _packed(number: Number) -> bytes:
    size = struct.calcsize(number.format)
    return (number.value % (1 << 8 * size)).to_bytes(size, "little")


def gguf_seed() -> GgufModel:
    """Return a small whole file: every type of metadata, three tensors."""
    model = GgufModel()
    model.pieces += [b"GGUF", Number("<I", 3), Number("<Q", 3), Number("<Q", 16)]
    model.string(b"general.architecture")
    model.pieces.append(Number("<I", 8))
    model.string(b"llama")
    model.string(b"general.alignment")
    model.pieces += [Number("<I", 4), Number("<I", 32)]
    for kind, size in enumerate(_SCALAR_BYTES):
        if size:
            model.string(f"key.{kind}".encode())
            model.pieces += [Number("<I", kind), b"\1" + bytes(size - 1)]
    for kind, items in ((8, 3), (4, 5), (7, 4)):
        model.string(f"array.{kind}".encode())
        model.pieces += [Number("<I", 9), Number("<I", kind), Number("<Q", items)]
        for item in range(items):
            if kind == 8:
                model.string(b"token%d" % item)
            else:
                model.pieces.append(b"\1" + bytes(_SCALAR_BYTES[kind] - 1))
    offset = 0
    for name, kind, dims, size in (
        (b"a", 0, (4, 3), 48),
        (b"blk.0.q", 8, (64, 2), 136),
        (b"k", 12, (256,), 144),
    ):
        model.string(name)
        model.pieces.append(Number("<I", len(dims)))
        model.pieces += [Number("<Q", dim) for dim in dims]
        model.pieces += [Number("<I", kind), Number("<Q", offset)]
        offset += size + -size % 32
    model.pieces.append(bytes(-len(model.build()) % 32))
    model.pieces.append(bytes(range(256)) * (offset // 256 + 1))
    return model


def mutate_gguf(rng: random.Random) -> bytes:
    """Return a file of which a number or a few are wrong, or some bytes."""
    model = gguf_seed()
    numbers = [piece for piece in model.pieces if isinstance(piece, Number)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        number = rng.choice(numbers)
        bits = 8 * struct.calcsize(number.format)
        number.value = odd_number(rng, number.value, bits, [each.value for each in numbers])
    data = bytearray(model.build())
    action = rng.randrange(6)
    if action == 0:
        scramble(data, rng)
    elif action == 1:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def safetensors_seed() -> bytes:
    header = {
        "__metadata__": {"format": "mlx"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
        "c": {"dtype": "U8", "shape": [0, 4], "data_offsets": [26, 26]},
        "d": {"dtype": "I64", "shape": [1], "data_offsets": [26, 34]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(34)
