"""Damage to a set, a field or a few at a time, in every structure of the format."""

from __future__ import annotations

import contextlib
import copy
import random
import struct
from collections.abc import Callable, Sequence

import zstandard

from fuzz import sets
from fuzz.document_damage import dense_header, manifest, many_values, meta
from fuzz.layout_damage import layout_count, layout_field, layout_parts, layout_shape
from fuzz.odd_values import _odd_bytes, mutate_field, odd_number, scramble
from fuzz.sets import FIXES, Files, SectionModel, SetModel

_TAGS = (b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS", b"prov", b"hotl", b"zzzz", b"Zzzz", b"M3TA")
_TAGS += (b"\0\0\0\0", b"m\xe9ta", b"blks", b"meta")


Mutation = Callable[[SetModel, random.Random], None]


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


def content_bytes(model: SetModel, rng: random.Random) -> None:
    """A few bytes of a section's content, whatever they mean."""
    section = rng.choice(rng.choice(model.shards).sections)
    if section.document is not None:
        sets.write_meta(model.shards[0])
        section.document = None
    scramble(section.raw, rng)


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
