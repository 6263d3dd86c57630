"""One wrong bit, in every field, section, gap and file of a set of several shards: always found.

The places come from the specification's tables, not from `formats`.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import ENTRY_BYTES, HEADER_BYTES, section_entries, write_set
from formats import BLOCK_ALIGN, verify_full

SEED = 20_261_124
SHARDS = [f"model-0000{number}-of-00004.kexp" for number in (1, 2, 3, 4)]
FILES = {
    "tokenizer.json": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]}}',
    "tokenizer_config.json": b'{"eos_token":"a"}',
    "chat_template.jinja": b"{{ messages[0].content }}",
}
SUPERBLOCK = {
    "magic": (0, 8),
    "version_major": (8, 10),
    "version_minor": (10, 12),
    "header_size": (12, 16),
    "incompat_features": (16, 24),
    "compat_features": (24, 32),
    "file_size": (32, 40),
    "block_align": (40, 44),
    "tensor_align": (44, 48),
    "shard_no": (48, 52),
    "shard_count": (52, 56),
    "section_off": (56, 64),
    "section_count": (64, 68),
    "table_crc": (68, 72),
    "set_root": (72, 104),
    "shard_root": (104, 136),
    "zeros": (136, 4092),
    "header_crc": (4092, 4096),
}
TABLE_ENTRY = {
    "tag": (0, 4),
    "codec": (4, 8),
    "offset": (8, 16),
    "stored_len": (16, 24),
    "raw_len": (24, 32),
    "crc32": (32, 36),
    "reserved": (36, 40),
    "sha256": (40, 72),
    "reserved_2": (72, 80),
}
INDEX_ENTRY = {
    "layer": (0, 2),
    "expert": (2, 4),
    "layout": (4, 6),
    "flags": (6, 8),
    "offset": (8, 16),
    "length": (16, 24),
    "crc32": (24, 28),
    "reserved": (28, 32),
    "sha256": (32, 64),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose files every test leaves as it found them."""
    root = tmp_path_factory.mktemp("everywhere")
    write_set(root / "model", shard_bytes=4 * BLOCK_ALIGN, files=FILES)
    return root / "model"


def regions(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield (name, begin, end) of everything a shard consists of, to its last byte."""
    for name, (begin, end) in SUPERBLOCK.items():
        yield f"superblock {name}", begin, end
    sections = section_entries(data)
    floor = HEADER_BYTES + ENTRY_BYTES * len(sections)
    for tag, (entry, offset, stored) in sections.items():
        for name, (begin, end) in TABLE_ENTRY.items():
            yield f"table {tag} {name}", entry + begin, entry + end
        if offset > floor:
            yield f"gap before {tag}", floor, offset
        floor = offset + stored
        yield from section_regions(data, tag, offset, stored)
    assert floor == len(data)


def section_regions(
    data: bytes, tag: str, offset: int, stored: int
) -> Iterator[tuple[str, int, int]]:
    if tag == "EXPT":
        for at in range(offset, offset + stored, 64):
            for name, (begin, end) in INDEX_ENTRY.items():
                yield f"index {name}", at + begin, at + end
    elif tag == "DENS":
        header = 8 + int.from_bytes(data[offset : offset + 8], "little")
        yield "dense length", offset, offset + 8
        yield "dense header", offset + 8, offset + header
        yield "dense data", offset + header, offset + stored
    elif tag == "BLKS":
        _, index, index_bytes = section_entries(data)["EXPT"]
        for at in range(index, index + index_bytes, 64):
            begin, length = struct.unpack_from("<QQ", data, at + 8)
            yield "block", begin, begin + length
            yield "end of a block", begin + length - 1, begin + length
    else:
        yield tag, offset, offset + stored


def flipped(file: Path, offset: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("name", SHARDS)
def test_every_region_of_a_shard(folder: Path, name: str) -> None:
    file = folder / name
    data = file.read_bytes()
    rng = random.Random(SEED)
    num_bytes = 0
    for region, begin, end in regions(data):
        num_bytes += end - begin
        for offset in {rng.randrange(begin, end), rng.randrange(begin, end)}:
            bit = rng.randrange(8)
            flipped(file, offset, bit)
            report = verify_full(folder)
            assert not report.ok, f"{region}: bit {bit} at {offset:#x}"
            assert name in {finding.file for finding in report.findings}, region
            flipped(file, offset, bit)
    # "end of a block" lies in "block"
    assert num_bytes - sum(region == "end of a block" for region, *_ in regions(data)) == len(data)
    assert verify_full(folder).ok


@pytest.mark.parametrize("name", ["kexp.json", "config.json", *FILES])
def test_every_byte_of_a_file_beside_the_shards(folder: Path, name: str) -> None:
    file = folder / name
    rng = random.Random(SEED)
    for offset in range(len(file.read_bytes())):
        bit = rng.randrange(8)
        flipped(file, offset, bit)
        assert not verify_full(folder).ok, f"bit {bit} at {offset}"
        flipped(file, offset, bit)
    assert verify_full(folder).ok


def test_every_bit_of_the_superblock_and_the_table(folder: Path, tmp_path: Path) -> None:
    """All eight bits of each byte, where a field that nobody compares would hide."""
    copy = shutil.copytree(folder, tmp_path / "model")
    file = copy / SHARDS[1]
    end = HEADER_BYTES + ENTRY_BYTES * 3
    for offset in (*range(136), *range(4092, end)):
        for bit in range(8):
            flipped(file, offset, bit)
            assert not verify_full(copy).ok, f"bit {bit} at {offset}"
            flipped(file, offset, bit)
