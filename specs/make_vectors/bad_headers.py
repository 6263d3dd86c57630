"""Superblocks and section tables that must be refused."""

from __future__ import annotations

from changes import Case, Poke, append, changed, damaged, entry, poke, sections_text, start
from models import sharded, tiny
from sets import Section, make, table


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
