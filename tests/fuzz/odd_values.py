"""Numbers, fields and bytes that are nearly right, or not at all."""

from __future__ import annotations

import random
from collections.abc import Sequence

from specs.fields import Field, Structure, load_fields

_WIDTHS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}


_LIMITS = sorted(set(load_fields().limits.values()))


def odd_number(rng: random.Random, right: int, bits: int, peers: Sequence[int] = ()) -> int:
    """Return a value near a boundary: of the type, of the right value, of a limit, of a product.

    peers: right values elsewhere.
    """
    whole = 1 << bits
    candidates = [
        *(0, 1, 2, whole - 1, whole - 2, whole // 2, whole // 2 - 1),
        *(right + 1, right - 1, right * 2, right // 2, -right, right ^ 1 << rng.randrange(bits)),
        *(right + 128, right - 128, right + 16384, right - 16384),
        # A product or a sum with these comes out right if it wraps.
        *(right + whole // 2, right + whole // 4, right + whole // rng.choice((8, 16, 128, 16384))),
        *(1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1),
        *(limit + rng.choice((-1, 0, 0, 1)) for limit in _LIMITS),
        *(peers or (right,)),
        rng.getrandbits(bits),
    ]
    return rng.choice(candidates) % whole


def mutate_field(
    raw: bytearray, at: int, structure: Structure, rng: random.Random, peers_at: Sequence[int] = ()
) -> None:
    """Change one field of the structure at `at`; peers_at: where others of its kind stand."""
    field = rng.choice(structure.fields)
    where = at + field.offset_bytes
    raw[where : where + field.size_bytes] = _odd_bytes(
        bytes(raw[where : where + field.size_bytes]),
        field,
        rng,
        [bytes(raw[peer + field.offset_bytes :][: field.size_bytes]) for peer in peers_at],
    )


def _odd_bytes(
    right: bytes, field: Field, rng: random.Random, peers: Sequence[bytes] = ()
) -> bytes:
    if field.count != 1:
        data = bytearray(right)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return rng.choice([bytes(data), bytes(len(right)), b"\xff" * len(right), *peers])
    number = odd_number(
        rng,
        int.from_bytes(right, "little"),
        _WIDTHS[field.element],
        [int.from_bytes(peer, "little") for peer in peers],
    )
    return number.to_bytes(field.size_bytes, "little")


def scramble(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not data:
            return
        at = rng.randrange(len(data))
        action = rng.randrange(5)
        if action == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            new = rng.choice((b"\0", b"\xff", b"\xff" * 8, bytes(8), b'"', b"{", b"[", b"\\", b"-"))
            data[at : at + len(new)] = new
        elif action == 2:
            length = rng.choice((1, 2, 8, 64))
            data[at : at + length] = data[rng.randrange(len(data)) :][:length]
        elif action == 3:
            del data[at : at + rng.choice((1, 8, 64))]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
