"""Damage is found, and always as a KexpError."""

from __future__ import annotations

import random
import re
import zlib
from pathlib import Path

import pytest

from containers import install, reseal, section_entries
from formats import KexpError, open_set, verify_full, verify_index

# Bits are sampled, one for each byte that is looked at: all of them would take minutes.
SEED = 20_261_123


def flip(file: Path, offset: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1 << bit]))


def dense_header_end(data: bytes, offset: int) -> int:
    return offset + 8 + int.from_bytes(data[offset : offset + 8], "little")


def test_any_flipped_bit_before_the_weights_is_found_at_open(folder: Path) -> None:
    file = folder / "model.kexp"
    data = file.read_bytes()
    _, dens, _ = section_entries(data)["DENS"]
    rng = random.Random(SEED)
    # The zeros of the superblock are 3956 bytes of one kind, and so is the padding before DENS.
    fields = [*range(140), *range(4092, 4096), *rng.sample(range(140, 4092), 40)]
    index_end = section_entries(data)["EXPT"][1] + section_entries(data)["EXPT"][2]
    sections = [*range(4096, index_end), *rng.sample(range(index_end, dens), 40)]
    header = range(dens, dense_header_end(data, dens))
    for offset in [*fields, *sections, *header]:
        bit = rng.randrange(8)
        flip(file, offset, bit)
        with pytest.raises(KexpError):
            open_set(folder).close()
        flip(file, offset, bit)
    open_set(folder).close()


def test_any_flipped_bit_of_the_weights_is_found_by_full_verification(folder: Path) -> None:
    file = folder / "model.kexp"
    data = file.read_bytes()
    entries = section_entries(data)
    rng = random.Random(SEED)
    _, dens, dens_bytes = entries["DENS"]
    _, blks, blks_bytes = entries["BLKS"]
    offsets = [
        *rng.sample(range(dense_header_end(data, dens), dens + dens_bytes), 20),
        *rng.sample(range(dens + dens_bytes, blks), 5),
        *rng.sample(range(blks, blks + blks_bytes), 60),
        blks,
        blks + blks_bytes - 1,
    ]
    for offset in offsets:
        bit = rng.randrange(8)
        flip(file, offset, bit)
        assert not verify_full(folder).ok, hex(offset)
        flip(file, offset, bit)
    assert verify_full(folder).ok


@pytest.mark.parametrize("name", ["kexp.json", "config.json"])
def test_any_flipped_bit_beside_the_shards_is_found(folder: Path, name: str) -> None:
    file = folder / name
    rng = random.Random(SEED)
    for offset in range(len(file.read_bytes())):
        bit = rng.randrange(8)
        flip(file, offset, bit)
        assert not verify_full(folder).ok, offset
        flip(file, offset, bit)
    assert verify_full(folder).ok


def test_a_damaged_block_is_named(folder: Path) -> None:
    with open_set(folder) as opened:
        extent = opened.extent(2, 1)
    flip(folder / "model.kexp", extent.offset_bytes + 700, 3)
    pattern = (
        rf"model\.kexp: layer 2 expert 1 at {extent.offset_bytes:#x}: "
        rf"crc32 [0-9a-f]{{8}} != {extent.crc32:08x} \(E_BLOCK_CRC\)"
    )
    with open_set(folder) as opened:
        with pytest.raises(KexpError, match=pattern):
            opened.block(2, 1)
        assert len(opened.block(2, 1, check=False)) == extent.payload_bytes
        opened.block(2, 2)
    assert verify_index(folder).ok
    report = verify_full(folder)
    assert [re.fullmatch(pattern, str(finding)) is not None for finding in report.findings] == [
        True
    ]


def test_padding_of_a_block_is_named(folder: Path) -> None:
    with open_set(folder) as opened:
        extent = opened.extent(5, 1)
        inner = opened.layout(5).parts[0].length_bytes
    for offset in (extent.payload_bytes, extent.block_bytes - 1, inner):
        flip(folder / "model.kexp", extent.offset_bytes + offset, 0)
        (finding,) = verify_full(folder).findings
        # Padding between parts is inside the payload, so its CRC-32 speaks first.
        assert finding.code == ("E_BLOCK_CRC" if offset == inner else "E_PADDING")
        assert (finding.layer, finding.expert) == (5, 1)
        flip(folder / "model.kexp", extent.offset_bytes + offset, 0)


def test_several_damaged_blocks_are_all_listed(folder: Path) -> None:
    places = [(1, 0), (2, 2), (5, 1)]
    with open_set(folder) as opened:
        offsets = [opened.extent(*place).offset_bytes for place in places]
    for offset in offsets:
        flip(folder / "model.kexp", offset, 0)
    report = verify_full(folder)
    assert [(each.layer, each.expert) for each in report.findings] == places


def test_damage_with_the_crc_put_right_is_found_by_its_sha256(folder: Path) -> None:
    data = bytearray((folder / "model.kexp").read_bytes())
    with open_set(folder) as opened:
        extent = opened.extent(1, 0)
    data[extent.offset_bytes] ^= 1
    payload = data[extent.offset_bytes : extent.offset_bytes + extent.payload_bytes]
    _, index, _ = section_entries(data)["EXPT"]
    data[index + 24 : index + 28] = zlib.crc32(payload).to_bytes(4, "little")
    reseal(data)
    install(folder, data)
    assert verify_index(folder).ok
    assert [finding.code for finding in verify_full(folder).findings] == ["E_BLOCK_SHA256"]


def test_an_index_that_disagrees_with_the_blocks_root(folder: Path) -> None:
    data = bytearray((folder / "model.kexp").read_bytes())
    _, index, _ = section_entries(data)["EXPT"]
    data[index + 40] ^= 1
    reseal(data)
    install(folder, data)
    assert [finding.code for finding in verify_index(folder).findings] == ["E_BLOCKS_ROOT"]


@pytest.mark.parametrize(
    "length", [0, 1, 8, 4095, 4096, 4097, 4495, 5000, 16384, 20000, -16384, -1]
)
def test_a_truncated_file(folder: Path, length: int) -> None:
    file = folder / "model.kexp"
    data = file.read_bytes()
    file.write_bytes(data[:length])
    with pytest.raises(KexpError, match=r"model\.kexp.*\(E_FILE_SIZE\)"):
        open_set(folder)
    assert [finding.code for finding in verify_full(folder).findings] == ["E_FILE_SIZE"]


def test_a_file_that_grew(folder: Path) -> None:
    with (folder / "model.kexp").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(KexpError, match="E_FILE_SIZE"):
        open_set(folder)


def test_something_else_altogether(folder: Path) -> None:
    (folder / "model.kexp").write_bytes(b"GGUF" + bytes(8192))
    with pytest.raises(KexpError, match="E_MAGIC"):
        open_set(folder)


def test_random_damage_never_raises_anything_else(folder: Path) -> None:
    """Stretches are overwritten and the checksums put right, so that the damage is read."""
    pristine = (folder / "model.kexp").read_bytes()
    manifest = (folder / "kexp.json").read_bytes()
    entries = section_entries(pristine)
    targets = [range(8, 136), range(4096, 4496)]
    for tag in ("META", "LAYT", "EXPT"):
        _, offset, stored = entries[tag]
        targets += [range(offset, offset + stored)] * 2
    rng = random.Random(SEED)
    interesting = [b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\xff" * 4, b"\xff" * 8, bytes(8)]
    for _ in range(500):
        data = bytearray(pristine)
        for _ in range(rng.randint(1, 3)):
            at = rng.choice(rng.choice(targets))
            new = rng.choice([*interesting, rng.randbytes(1), rng.choice([b'"', b"{", b"9", b"-"])])
            data[at : at + len(new)] = new
        # A damaged table would lead the resealing itself astray.
        if data[4096:4496] == pristine[4096:4496] and data[64:68] == pristine[64:68]:
            reseal(data)
        install(folder, data)
        verify_full(folder)  # opens, and reads everything if that succeeds
    (folder / "kexp.json").write_bytes(manifest)
    (folder / "model.kexp").write_bytes(pristine)
    assert verify_full(folder).ok
