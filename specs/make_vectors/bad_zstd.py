"""Compressed sections that must be refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

from changes import LONG, MAX_JSON_VALUES, Case, append, compress, entry, many_values
from models import tiny
from sets import Section, make, seal
from zstd_frames import ZSTD_MAGIC, frame, rows_of_zstd


def zstd_cases() -> list[Case]:
    def sized(raw: bytes) -> bytes:
        return struct.pack("<I", len(raw))

    encodings: list[tuple[str, Callable[[bytes], bytes], str, str]] = [
        ("not-zstd", lambda raw: b"x" * 40, "no magic", "E_SECTION_CODEC"),
        ("no-size", lambda raw: ZSTD_MAGIC + b"\0\x58" + rows_of_zstd(raw), "", "E_SECTION_CODEC"),
        ("other-size", lambda raw: frame(raw[:-1]), "announces a byte less", "E_SECTION_CODEC"),
        (
            "lies",
            lambda raw: ZSTD_MAGIC + b"\xa0" + sized(raw) + rows_of_zstd(raw[:-1]),
            "announces a byte more than it has",
            "E_SECTION_CODEC",
        ),
        ("behind", lambda raw: frame(raw) + b"\0", "a byte follows the frame", "E_SECTION_CODEC"),
        ("cut", lambda raw: frame(raw)[:-1], "the last byte is missing", "E_SECTION_CODEC"),
        (
            "skippable",
            lambda raw: b"\x50\x2a\x4d\x18\0\0\0\0" + frame(raw),
            "a skippable frame in front",
            "E_SECTION_CODEC",
        ),
        (
            "window",
            lambda raw: ZSTD_MAGIC + b"\x80\x70" + sized(raw) + rows_of_zstd(raw),
            "a window of 16 MiB",
            "E_SECTION_CODEC",
        ),
        (
            "dictionary",
            lambda raw: ZSTD_MAGIC + b"\xa1\x07" + sized(raw) + rows_of_zstd(raw),
            "wants dictionary 7",
            "E_SECTION_CODEC",
        ),
        (
            "checksum",
            lambda raw: ZSTD_MAGIC + b"\xa4" + frame(raw)[5:] + b"\0\0\0\0",
            "a wrong Content_Checksum",
            "E_SECTION_CODEC",
        ),
        ("content", lambda raw: frame(b" " + raw[1:]), "other content", "E_SECTION_SHA256"),
        ("larger", lambda raw: raw + b"x", "stored_len above raw_len", "E_SECTION_EXTENT"),
    ]
    cases = [
        Case(f"zstd-{name}", make(tiny(note=LONG), compress(b"META", encode)), note or name, code)
        for name, encode, note, code in encodings
    ]
    bomb = make(tiny(note=LONG), compress(b"META"))
    entry(b"META", 24, "<Q", (16 << 20) + 1)(bomb["model.kexp"])
    seal(bomb, sections=False)
    note = "raw_len of a compressed section above 16 MiB"
    cases.append(Case("zstd-limit", bomb, note, "E_LIMIT"))
    note = "META of 2^18 + 1 values"
    cases.append(Case("zstd-json-values", many_values(MAX_JSON_VALUES + 1), note, "E_JSON_VALUE"))
    prov = Section(b"prov", LONG.encode(), frame(LONG.encode())[:-1])
    ancillary = make(tiny(), append(prov))
    note = "an ancillary section that is no frame"
    cases.append(Case("zstd-ancillary", ancillary, note, "E_SECTION_CODEC", "full"))
    return cases
