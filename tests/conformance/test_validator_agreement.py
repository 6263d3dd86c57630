"""The reader of `formats` and the validator know each other only through the specification."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from conformance.damage import Container
from containers import write_set
from formats import KexpError, open_set, verify_full
from specs.validate_kexp import validate

NUM_MUTATIONS = 300
# (format, offset) of the fields of a structure; section 5 to 9 of the specification.
SUPERBLOCK = [("<H", 8), ("<H", 10), ("<I", 12), ("<Q", 16), ("<Q", 24), ("<Q", 32), ("<I", 40)]
SUPERBLOCK += [("<I", 44), ("<I", 48), ("<I", 52), ("<Q", 56), ("<I", 64), ("<I", 68), ("<Q", 72)]
SUPERBLOCK += [("<Q", 104), ("<Q", 136), ("<I", 4092)]
ROW = [("<I", 0), ("<I", 4), ("<Q", 8), ("<Q", 16), ("<Q", 24), ("<I", 32), ("<I", 36), ("<Q", 40)]
ROW += [("<Q", 72)]
LAYT_HEADER = [("<I", 0), ("<I", 4), ("<Q", 8)]
LAYOUT_HEADER = [("<H", 0), ("<H", 2), ("<I", 4), ("<Q", 8), ("<Q", 16), ("<Q", 24)]
PART = [("<B", at) for at in range(6)] + [("<H", 6), ("<I", 8), ("<I", 12), ("<Q", 16), ("<Q", 24)]
ENTRY = [("<H", 0), ("<H", 2), ("<H", 4), ("<H", 6), ("<Q", 8), ("<Q", 16), ("<I", 24), ("<I", 28)]
ENTRY += [("<Q", 32)]
SIZES = {"<B": 8, "<H": 16, "<I": 32, "<Q": 64}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "set"
    write_set(folder)
    return folder


def fields(shard: Container) -> list[tuple[str, int]]:
    """Every field of the set once, structures that repeat a few times."""
    found = [*SUPERBLOCK]
    for tag in ("META", "LAYT", "EXPT", "DENS", "BLKS"):
        found += [(form, shard.row(tag) + at) for form, at in ROW]
    layt, expt = shard.at("LAYT"), shard.at("EXPT")
    found += [(form, layt + at) for form, at in LAYT_HEADER]
    for head, num_parts in ((16, 9), (16 + 32 + 9 * 32, 4)):
        found += [(form, layt + head + at) for form, at in LAYOUT_HEADER]
        for part in range(num_parts):
            found += [(form, layt + head + 32 + 32 * part + at) for form, at in PART]
    for entry in (0, 1, 3, 7):
        found += [(form, expt + 64 * entry + at) for form, at in ENTRY]
    for tag in ("META", "DENS", "BLKS"):
        found += [("<B", shard.at(tag) + at) for at in (0, 1, 7, 8, 9, 20, 100)]
    return found


def mutate(shard: Container, random_: random.Random) -> str:
    form, at = random_.choice(fields(shard))
    bits = SIZES[form]
    before = shard.get(form, at)
    top = (1 << bits) - 1
    value = random_.choice(
        [
            *(0, 1, 2, top, top >> 1, random_.randrange(top)),
            *(before + 1, before - 1, before + 128, before + 16384, before * 2),
            before ^ 1 << random_.randrange(bits),
        ]
    )
    shard.put(form, at, value & top)
    sealed = random_.random() < 0.8
    if sealed:
        try:
            shard.seal()
        except (LookupError, StopIteration, UnicodeDecodeError, struct.error):
            sealed = False  # the table no longer says where things are
    return f"{form} at {at}: {before} -> {value & top}, {'sealed' if sealed else 'not sealed'}"


ODD_VALUES: list[Any] = [None, True, 0, 1, -1, 3, 2**53 - 1, 2**53, 0.5, "", "x", "a" * 64]
ODD_VALUES += ["F4", "F32", "\x7f\u20ac\n", [], [1], [0, 4], {}, {"a": 1}, [[]] * 3]


def mutate_json(value: Any, random_: random.Random) -> str:
    """Change one thing somewhere in a JSON document."""
    path = []
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = random_.choice(keys)
        path.append(key)
        child = value[key]
        if not isinstance(child, dict | list) or not child or random_.random() < 0.3:
            break
        value = child
    kind = random_.random()
    odd = random_.choice(ODD_VALUES)
    if kind < 0.15:
        del value[key]
    elif kind < 0.3 and isinstance(value, dict):
        value[random_.choice(["", "A", "more", "sha256", "\ud7ff", "\U00010000"])] = odd
    elif kind < 0.4 and isinstance(value, list):
        value.insert(key, random_.choice([odd, child]))
    else:
        value[key] = odd
    return f"{path}: {odd!r}"


def mutate_document(shard: Container, random_: random.Random) -> str:
    """Change META or the header of DENS, and put everything right around it."""
    changes: list[str] = []
    change = shard.change_meta if random_.random() < 0.6 else shard.change_dense
    try:
        change(lambda document: changes.append(mutate_json(document, random_)))
        shard.seal()
    except (AssertionError, KeyError):  # no room for it, or no dense_header left to put right
        return "nothing"
    return f"{change.__name__} {changes}"


def reader_code(folder: Path) -> str | None:
    """The code with which the reader refuses a set, or None."""
    try:
        open_set(folder).close()
        report = verify_full(folder)
    except KexpError as error:
        return error.code
    return report.findings[0].code if report.findings else None


@pytest.mark.parametrize("seed", range(10))
def test_same_verdict(sound: Path, tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    folder = shutil.copytree(sound, tmp_path / "set")
    refused = 0
    for _ in range(NUM_MUTATIONS // 10):
        shard = Container(sound)
        shard.folder = folder
        change = random_.choice([mutate, mutate, mutate_document])(shard, random_)
        shard.save()
        code = reader_code(folder)
        report = validate(folder)
        codes = {finding.code for finding in report.findings}
        assert (code is None) == (report.exit_code == 0), f"{change}: {code}, {codes}"
        assert code is None or code in codes, f"{change}: {code} not in {codes}"
        refused += code is not None
    assert refused > NUM_MUTATIONS // 20
