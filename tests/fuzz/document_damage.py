"""Damage to JSON: metadata, the header of dense tensors, the manifest."""

from __future__ import annotations

import copy
import random
from typing import Any

import zstandard

from fuzz import json_text, sets
from fuzz.json_text import Literal
from fuzz.odd_values import odd_number
from fuzz.sets import SetModel


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


def random_document(rng: random.Random, document: Any) -> bytes:
    """Return the text of a document changed in a few nodes, spelled in some way."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        document = json_text.mutate(document, rng)
    spelling = rng.choice((json_text.CANONICAL,) * 4 + json_text.SPELLINGS)
    return json_text.write(document, lambda auto: Literal(b"1"), spelling)
