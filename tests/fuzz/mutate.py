"""Damage to a set, a field or a few at a time, in every structure of the format."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import zstandard

from fuzz import json_text, sets
from fuzz.json_text import Literal
from fuzz.sets import FIXES, Files, SectionModel, SetModel, ShardModel
from specs.fields import Field, Structure, load_fields

_WIDTHS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}
_LIMITS = sorted(set(load_fields().limits.values()))
_TAGS = (b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS", b"prov", b"hotl", b"zzzz", b"Zzzz", b"M3TA")
_TAGS += (b"\0\0\0\0", b"m\xe9ta", b"blks", b"meta")

Mutation = Callable[[SetModel, random.Random], None]


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


# One function for each kind of damage.


def superblock(model: SetModel, rng: random.Random) -> None:
    shard = rng.choice(model.shards)
    field = rng.choice(sets.SUPERBLOCK.fields)
    right = shard.fields.get(
        field.name, {"file_size": 49152, "section_count": 5}.get(field.name, 0)
    )
    if isinstance(right, int) and field.count == 1:
        right = right.to_bytes(field.size_bytes, "little")
    right = right or bytes(field.size_bytes)
    value = _odd_bytes(right, field, rng)
    shard.fields[field.name] = value if field.count != 1 else int.from_bytes(value, "little")


def shard_numbers(model: SetModel, rng: random.Random) -> None:
    shard = rng.choice(model.shards)
    shard.fields["shard_no"] = rng.choice((0, 1, 2, 4095, 4096, 2**32 - 1))
    shard.fields["shard_count"] = rng.choice((0, 1, 2, 3, 4096, 4097, 2**32 - 1))


def table_entry(model: SetModel, rng: random.Random) -> None:
    shard = rng.choice(model.shards)
    section = rng.choice(shard.sections)
    field = rng.choice(sets.ENTRY.fields)
    if field.name == "tag":
        section.entry["tag"] = rng.choice(_TAGS)
        return
    right = {
        "codec": 0,
        "offset": rng.choice((4608, 16384, 32768)),
        "stored_len": len(section.stored or section.raw),
        "raw_len": len(section.raw),
    }.get(field.name, 0)
    data = right.to_bytes(field.size_bytes, "little")
    value = _odd_bytes(data, field, rng)
    section.entry[field.name] = value if field.count != 1 else int.from_bytes(value, "little")


def lengths_in_step(model: SetModel, rng: random.Random) -> None:
    """stored_len and raw_len wrong alike, so that each is the other's witness."""
    section = rng.choice(rng.choice(model.shards).sections)
    length = odd_number(rng, len(section.raw), 64)
    section.entry |= {"stored_len": length, "raw_len": length}


def section_set(model: SetModel, rng: random.Random) -> None:
    sections = rng.choice(model.shards).sections
    index = rng.randrange(len(sections))
    action = rng.randrange(5)
    if action == 0:
        del sections[index]
    elif action == 1:
        sections.insert(rng.randrange(len(sections) + 1), copy.deepcopy(sections[index]))
    elif action == 2:
        other = rng.randrange(len(sections))
        sections[index], sections[other] = sections[other], sections[index]
    elif action == 3:
        for _ in range(rng.choice((1, 1, 2, 59, 60))):
            tag = bytes(rng.choice(b"abcdefghijklmnopqrstuvwxyz") for _ in range(4))
            tag = rng.choice((tag, tag, rng.choice(_TAGS)))
            content = bytearray(rng.randbytes(rng.choice((1, 1, 127, 128, 129, 5000))))
            sections.append(SectionModel(tag, content))
    else:
        donor = rng.choice(model.shards).sections
        sections.append(copy.deepcopy(rng.choice(donor)))


def empty_section(model: SetModel, rng: random.Random) -> None:
    section = rng.choice(rng.choice(model.shards).sections)
    del section.raw[rng.choice((0, 0, 1, 7, 8, 16, 64)) :]
    section.document = None


def compress(model: SetModel, rng: random.Random) -> None:
    """A zstd frame, right or wrong in one way."""
    shard = rng.choice(model.shards)
    section = rng.choice(shard.sections)
    if rng.random() < 0.3:
        tag = rng.choice((b"prov", b"bomb"))
        section = SectionModel(tag, bytearray(rng.choice((1 << 10, 1 << 20, 16 << 20))))
        shard.sections.append(section)
    sets.write_meta(shard)
    section.document = None
    raw = bytes(section.raw)
    action = rng.randrange(14)
    window = rng.choice((10, 20, 23, 24, 27)) if action == 0 else 20
    parameters = zstandard.ZstdCompressionParameters.from_level(
        rng.choice((1, 3, 19 if len(raw) < 1 << 16 else 3)),
        window_log=window,
        write_checksum=rng.random() < 0.3,
        write_content_size=action != 1,
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    frame = compressor.compress(raw)
    if action in (0, 1):  # as a stream, so the window is as asked, and not the content's size
        stream = compressor.compressobj(size=len(raw) if action == 0 else -1)
        frame = stream.compress(raw) + stream.flush()
    section.stored = _damaged_frame(frame, raw, action, rng, compressor)
    if action == 11:
        section.entry["raw_len"] = odd_number(rng, len(raw), 64)
    if action == 12:
        section.entry["raw_len"] = rng.choice(((16 << 20) + 1, 1 << 30, 1 << 62))


def _damaged_frame(
    frame: bytes,
    raw: bytes,
    action: int,
    rng: random.Random,
    compressor: zstandard.ZstdCompressor,
) -> bytes:
    damaged = bytearray(frame)
    if action == 2:
        return frame + rng.choice((b"\0", b"x" * 9, frame))
    if action == 3:
        return frame[: rng.randrange(len(frame))]
    if action == 4:  # skippable frames before or after
        skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
        return rng.choice((skippable + frame, frame + skippable))
    if action in (5, 6):
        at = rng.randrange(len(damaged) if action == 5 else min(14, len(damaged)))
        damaged[at] ^= 1 << rng.randrange(8)
    elif action == 7:  # two frames that together hold the content
        half = len(raw) // 2
        return compressor.compress(raw[:half]) + compressor.compress(raw[half:])
    elif action == 8:  # blocks of a repeated byte: 128 KiB from four bytes each
        count = rng.choice((1, 8, 128, 200, 5000))
        size = rng.choice((len(raw), (128 << 10) * count, 16 << 20))
        block = (128 << 10) << 3 | 1 << 1
        blocks = (block.to_bytes(3, "little") + b"[") * (count - 1)
        last = (block | 1).to_bytes(3, "little") + b"["
        head = b"\x28\xb5\x2f\xfd" + bytes([0b11 << 6 | 0 << 5]) + bytes([rng.choice((0x50, 0x68))])
        return head + size.to_bytes(8, "little") + blocks + last
    elif action == 9:
        return frame[:4] + bytes([frame[4] | rng.choice((1, 2, 3, 4, 8, 16))]) + frame[5:]
    elif action == 10:
        return rng.randbytes(len(frame))
    return bytes(damaged)


def layout_field(model: SetModel, rng: random.Random) -> None:
    shard = rng.choice(model.shards)
    layt = shard.find(b"LAYT")
    if layt is None or not (layouts := sets.layouts_of(layt.raw)):
        return
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
    shard = rng.choice(model.shards)
    layt = shard.find(b"LAYT")
    if layt is None or not (layouts := sets.layouts_of(layt.raw)):
        return
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
    shard = rng.choice(model.shards)
    layt = shard.find(b"LAYT")
    if layt is None or not (layouts := sets.layouts_of(layt.raw)):
        return
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
    shard = rng.choice(model.shards)
    layt = shard.find(b"LAYT")
    if layt is None or not (layouts := sets.layouts_of(layt.raw)):
        return
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


def index_field(model: SetModel, rng: random.Random) -> None:
    index = _random_index(model, rng)
    if index is None:
        return
    rows = range(0, len(index.raw) - 63, 64)
    if rows:
        mutate_field(index.raw, rng.choice(rows), sets.EXPERT, rng, list(rows))


def index_rows(model: SetModel, rng: random.Random) -> None:
    """Entries removed, doubled, exchanged; a layer renumbered."""
    shard = rng.choice([shard for shard in model.shards if shard.find(b"EXPT")] or model.shards)
    index = shard.find(b"EXPT")
    if index is None:
        return
    rows = [bytes(index.raw[at : at + 64]) for at in range(0, len(index.raw) - 63, 64)]
    if not rows:
        return
    number = rng.randrange(len(rows))
    action = rng.randrange(6)
    if action == 0:
        del rows[number]
    elif action == 1:
        rows.insert(rng.randrange(len(rows) + 1), rows[number])
    elif action == 2:
        rng.shuffle(rows)
    elif action == 3:
        layer = struct.pack("<H", rng.choice((0, 1, 4095, 4096, 65535)))
        rows = [layer + row[2:] for row in rows]
    elif action == 4:
        rows = [row[:2] + struct.pack("<H", at % 65536) + row[4:] for at, row in enumerate(rows)]
    else:
        rows.append(rows[-1][:2] + struct.pack("<H", len(rows) % 65536) + rows[-1][4:])
    index.raw[:] = b"".join(rows) + rng.choice((b"", b"", b"", b"\0" * 32, b"\0"))
    if rng.random() < 0.7:
        sets.tile_again(shard)


def _random_index(model: SetModel, rng: random.Random) -> SectionModel | None:
    indexes = [shard.find(b"EXPT") for shard in model.shards]
    found = [index for index in indexes if index is not None]
    return rng.choice(found) if found else None


def meta(model: SetModel, rng: random.Random) -> None:
    section = model.shards[0].find(b"META")
    if section is None or section.document is None:
        return
    if rng.random() < 0.15:
        section.spelling = rng.choice(json_text.SPELLINGS)
    else:
        section.document = json_text.mutate(section.document, rng)


def many_values(model: SetModel, rng: random.Random) -> None:
    """META with as many values as 2^18 or as 16 MiB hold, raw or as a small frame."""
    section = model.shards[0].find(b"META")
    if section is None or not isinstance(section.document, json_text.Pairs):
        return
    unit = rng.choice((b"[]", b"0", b'""', b'{"":0}', b"1.5", b'"\\u0001"', b'"\\ud800"', b"[[]]"))
    count = rng.choice((2**18 - 200, 2**18 - 20, 2**18, 2**18 + 1, (16 << 20) // (len(unit) + 1)))
    text = Literal(b"[" + b",".join([unit] * count) + b"]")
    section.document.append(("zzz", text))
    sets.write_meta(model.shards[0])
    if rng.random() < 0.5:
        section.document = None
        section.stored = zstandard.ZstdCompressor().compress(bytes(section.raw))


def dense_header(model: SetModel, rng: random.Random) -> None:
    section = model.shards[0].find(b"DENS")
    if section is None or len(section.raw) < 8:
        return
    length = int.from_bytes(section.raw[:8], "little")
    data = bytes(section.raw[8 + length :])
    action = rng.randrange(10)
    if action == 0:
        section.raw[:8] = odd_number(rng, length, 64).to_bytes(8, "little")
        return
    if action == 1:
        section.raw[8 + length :] = rng.choice((data[:-1], data + b"\0", b"", data * 2))
        return
    try:
        document = json_text.parse(bytes(section.raw[8 : 8 + length]))
    except (ValueError, RecursionError):
        return
    spelling = json_text.Spelling(keys_as_given=True)
    if action == 2:
        spelling = rng.choice(json_text.SPELLINGS)
    elif action == 3 and isinstance(document, json_text.Pairs):
        tensors = [value for value in document if isinstance(value[1], json_text.Pairs)]
        if tensors:
            _odd_tensor(rng.choice(tensors)[1], len(data), rng)
    else:
        document = json_text.mutate(document, rng)
    text = json_text.write(document, lambda auto: None, spelling)
    text += b" " * rng.choice((0, 0, -(8 + len(text)) % 128, 1))
    section.raw[:] = len(text).to_bytes(8, "little") + text + data


def _odd_tensor(tensor: json_text.Pairs, data_bytes: int, rng: random.Random) -> None:
    dims = rng.choice(
        ([], [0], [1] * 32, [1] * 33, [data_bytes], [0, 2**53 - 1], [2**32, 2**32], [2**53, 0])
    )
    fields = {
        "dtype": rng.choice(("U8", "F4", "F6_E2M3", "BF16", "u8", "U7", "", "F8_E8M0", "C64")),
        "shape": dims,
        "data_offsets": rng.choice(
            ([0, data_bytes], [data_bytes, data_bytes], [1, 0], [0, 0], [0], [0, 2**53 - 1], [0.5])
        ),
    }
    name = rng.choice(list(fields))
    for at, (key, _) in enumerate(tensor):
        if key == name:
            tensor[at] = (key, fields[name])


def manifest(model: SetModel, rng: random.Random) -> None:
    if rng.random() < 0.15:
        model.manifest_spelling = rng.choice(json_text.SPELLINGS)
    else:
        model.manifest = json_text.mutate(model.manifest, rng)


def content_bytes(model: SetModel, rng: random.Random) -> None:
    """A few bytes of a section's content, whatever they mean."""
    section = rng.choice(rng.choice(model.shards).sections)
    if section.document is not None:
        sets.write_meta(model.shards[0])
        section.document = None
    scramble(section.raw, rng)


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


def padding(model: SetModel, rng: random.Random) -> None:
    section = rng.choice(rng.choice(model.shards).sections)
    at = rng.choice((0, 1, 100, 3000))
    section.gap = bytes(at) + rng.choice((b"\1", b"\x80"))


def file_length(model: SetModel, rng: random.Random) -> None:
    shard = rng.choice(model.shards)
    if rng.random() < 0.4:
        shard.tail = rng.choice((b"\0", bytes(128), b"x" * 16384))
        return
    length = sum(len(section.raw) for section in shard.sections) + 32768
    lengths = (0, 1, 8, 4095, 4096, 4097, 4176, 4496, 16384, 32768, rng.randrange(length))
    shard.length = rng.choice(lengths)
    if rng.random() < 0.3:
        shard.fields["file_size"] = rng.randrange(length)


def folder(model: SetModel, rng: random.Random) -> None:
    """Files missing, of another name, of another shard, or too many."""
    names = [shard.name for shard in model.shards]
    action = rng.randrange(7)
    if action == 0:
        model.missing.add(rng.choice([*names, *model.files, "kexp.json"]))
    elif action == 1:
        left, right = rng.choice(model.shards), rng.choice(model.shards)
        left.name, right.name = right.name, left.name
    elif action == 2:
        name = rng.choice(("model-x.kexp", "model.kexp", "model-00001-of-00002.kexp", "other.kexp"))
        if name not in names:
            model.files[name] = b"x"
    elif action == 3:
        rng.choice(model.shards).name = rng.choice(("model-00004-of-00003.kexp", "model.kexp"))
    elif action == 4:
        model.manifest_text = rng.choice((b"", b"{}", b"[]", b"null", b"\xff", b'{"a":1}', b"1"))
    else:
        text = rng.choice((b"", b"{}", b"[]", b'{"a":NaN}', b"\xff{}", b'{"a":1e999}', b"{} x"))
        deep = rng.choice((63, 64, 65, 5000))
        odd = rng.choice((b'{"a":' + b"9" * 5000 + b"}", b'{"a":' * deep + b"1" + b"}" * deep))
        model.files["config.json"] = rng.choice((text, odd, b"\xef\xbb\xbf{}", b'{"a":1,"a":2}'))


MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    (superblock, 8),
    (shard_numbers, 2),
    (table_entry, 10),
    (lengths_in_step, 2),
    (section_set, 5),
    (empty_section, 3),
    (compress, 8),
    (layout_field, 12),
    (layout_shape, 10),
    (layout_parts, 4),
    (layout_count, 2),
    (index_field, 8),
    (index_rows, 6),
    (meta, 12),
    (many_values, 1),
    (dense_header, 12),
    (manifest, 8),
    (content_bytes, 5),
    (padding, 2),
    (file_length, 3),
    (folder, 6),
)
LAYOUT_MUTATIONS = (layout_field, layout_shape, layout_parts, layout_count)
# In sixteenths, so that what costs a second is done seldom.
_CHOICES = [
    mutation
    for mutation, weight in MUTATIONS
    for _ in range(weight if mutation is many_values else 16 * weight)
]


def mutate_set(seed: SetModel, rng: random.Random) -> tuple[Files, list[str]]:
    """Return a damaged copy of a set, and the names of what was done to it."""
    model = copy.deepcopy(seed)
    count = rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 6))
    done = []
    for _ in range(count):
        mutation = rng.choice(_CHOICES)
        # Earlier damage may have left it nothing to work on.
        with contextlib.suppress(IndexError, ValueError, TypeError, struct.error):
            mutation(model, rng)
            done.append(mutation.__name__)
    fixes = frozenset(FIXES)
    if rng.random() < 0.12:
        left_wrong = rng.sample(FIXES, rng.choice((1, 1, 2)))
        fixes -= frozenset(left_wrong)
        done += [f"no {name}" for name in left_wrong]
    return sets.build(model, fixes), done


def mutate_any(files: Files, seeds: Sequence[SetModel], rng: random.Random) -> Files:
    """Return another set made from `files`, or from a seed when nothing can be made of them."""
    try:
        return mutate_set(sets.parse_set(files), rng)[0]
    except Exception:  # parse_set takes valid sets, and these are not
        return mutate_set(rng.choice(list(seeds)), rng)[0]


def random_document(rng: random.Random, document: Any) -> bytes:
    """Return the text of a document changed in a few nodes, spelled in some way."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        document = json_text.mutate(document, rng)
    spelling = rng.choice((json_text.CANONICAL,) * 4 + json_text.SPELLINGS)
    return json_text.write(document, lambda auto: Literal(b"1"), spelling)
