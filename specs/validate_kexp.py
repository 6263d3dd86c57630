#!/usr/bin/env python3
"""Validate a .kexp set against its specification, kexp-v1.md beside this file.

    python validate_kexp.py PATH [--level LEVEL] [--against SOURCE] [--json] [--quiet]

PATH is the folder of a set, or one .kexp file, which is then checked by itself. One file, standard
library only, Python 3.11 or later: written from the specification and not from any reader, so that
the two can disagree. Each level includes the ones before:

    framing     kexp.json, names and sizes, superblocks, section tables, padding between sections,
                the shard roots and the set root
    structure   checksums and form of META, LAYT and EXPT, the header of DENS, the blocks' root
    semantics   what META, LAYT, EXPT and DENS say about one another, and the shards likewise
    integrity   every byte (the default)

--against SOURCE compares each tensor, byte for byte, with a folder of MLX safetensors files.

Every finding is reported, not only the first, one a line:
`file: layer L expert E at OFFSET: message (CODE)`. What follows from a finding is left out: a
section whose checksum is wrong is not parsed, and nothing is derived from a damaged table.

Exit status: 0 valid, 1 invalid, 2 usage, 3 something could not be read, 4 something could not be
checked (a compressed section without `compression.zstd`, which is in Python from 3.14), 130
interrupted.

Memory does not grow with the weights: 48 MiB of buffers, and what the JSON texts and layouts take,
which is a few megabytes for real sets and below 200 MiB for the worst that the limits allow.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib
import io
import json
import math
import mmap
import os
import re
import stat
import struct
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

# --- Facts of the format -------------------------------------------------------------------------

MAGIC = b"\x89KEXP\r\n\x1a"
VERSION_MAJOR = 1
HEADER_SIZE = 4096
BLOCK_ALIGN = 16384
TENSOR_ALIGN = 128
KNOWN_INCOMPAT_FEATURES = 0

MAX_SHARDS = 4096
MAX_SECTIONS = 64
MAX_JSON_BYTES = 16 << 20
MAX_LAYT_BYTES = 16 + 4096 * (32 + 64 * 32)
MAX_EXPT_BYTES = 64 << 20
MAX_COMPRESSED_RAW_BYTES = 16 << 20
MAX_JSON_DEPTH = 16
MAX_JSON_VALUES = 2**18
MAX_CONFIG_DEPTH = 64
MAX_JSON_INTEGER = 2**53 - 1
MAX_JSON_STRING_BYTES = 4096
MAX_ZSTD_WINDOW_BYTES = 8 << 20
MAX_LAYERS = 4096
MAX_EXPERTS = 16384
MAX_LAYOUTS = 4096
MAX_PARTS = 64
MAX_PAYLOAD_BYTES = 2**30
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**53 - 1

SECTIONS_ONLY: tuple[bytes, ...] = (b"META", b"LAYT", b"EXPT", b"DENS", b"BLKS")
SECTIONS_FIRST: tuple[bytes, ...] = (b"META", b"LAYT", b"DENS")
SECTIONS_OTHER: tuple[bytes, ...] = (b"LAYT", b"EXPT", b"BLKS")
CODEC_RAW, CODEC_ZSTD = 0, 1
RAW_ONLY = (b"EXPT", b"DENS", b"BLKS")
BLOCK_ALIGNED = (b"DENS", b"BLKS")
MAX_RAW_BYTES = {b"META": MAX_JSON_BYTES, b"LAYT": MAX_LAYT_BYTES, b"EXPT": MAX_EXPT_BYTES}

PROJECTIONS = {1: "gate", 2: "up", 3: "gate_up", 4: "down", 5: "fc1", 6: "fc2"}
SOURCE_PROJECTIONS = {
    1: "gate_proj",
    2: "up_proj",
    3: "gate_up_proj",
    4: "down_proj",
    5: "fc1",
    6: "fc2",
}
ROLES = {1: "weight", 2: "scales", 3: "biases", 4: "bias", 5: "global_scale"}
WEIGHT, SCALES, BIASES, BIAS, GLOBAL_SCALE = 1, 2, 3, 4, 5
MODES = {1: "none", 2: "affine", 3: "mxfp4", 4: "mxfp8", 5: "nvfp4"}
MODE_NONE = 1


class ModeRule(NamedTuple):
    """What a quantization mode allows; `scales` are codes of DTYPES."""

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    required: frozenset[int]
    optional: frozenset[int]
    scales: tuple[int, ...]


DTYPES = {
    1: ("bool", 8),
    2: ("u8", 8),
    3: ("i8", 8),
    4: ("u16", 16),
    5: ("i16", 16),
    6: ("u32", 32),
    7: ("i32", 32),
    8: ("u64", 64),
    9: ("i64", 64),
    10: ("f16", 16),
    11: ("bf16", 16),
    12: ("f32", 32),
    13: ("f64", 64),
    14: ("c64", 64),
    15: ("f8_e4m3", 8),
    16: ("f8_e5m2", 8),
    17: ("f8_e8m0", 8),
    18: ("f8_e4m3fnuz", 8),
    19: ("f8_e5m2fnuz", 8),
    20: ("f4", 4),
    21: ("f6_e2m3", 6),
    22: ("f6_e3m2", 6),
}
U8, U32, F16, BF16, F32 = 2, 6, 10, 11, 12
DENSE_BITS = {name.upper(): bits for name, bits in DTYPES.values()}

SCALES_ONLY, NOTHING = frozenset((SCALES,)), frozenset[int]()
MODE_RULES = {
    2: ModeRule(
        (2, 3, 4, 5, 6, 8), (32, 64, 128), frozenset((SCALES, BIASES)), NOTHING, (F16, BF16, F32)
    ),
    3: ModeRule((4,), (32,), SCALES_ONLY, NOTHING, (U8,)),
    4: ModeRule((8,), (32,), SCALES_ONLY, NOTHING, (U8,)),
    5: ModeRule((4,), (16,), SCALES_ONLY, frozenset((GLOBAL_SCALE,)), (U8,)),
}

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,254}")
SHARD_NAME = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.kexp")
META_KEY = re.compile(r"[a-z0-9_.-]+")
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
NEVER_LISTED = ("kexp.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")


class Superblock(NamedTuple):
    """Bytes 0..135 of a file."""

    magic: bytes
    version_major: int
    version_minor: int
    header_size: int
    incompat_features: int
    compat_features: int
    file_size: int
    block_align: int
    tensor_align: int
    shard_no: int
    shard_count: int
    section_off: int
    section_count: int
    table_crc: int
    set_root: bytes
    shard_root: bytes


class SectionEntry(NamedTuple):
    tag: bytes
    codec: int
    offset: int
    stored_len: int
    raw_len: int
    crc32: int
    reserved: int
    sha256: bytes
    reserved_2: int


class LayoutHeader(NamedTuple):
    id: int
    part_count: int
    reserved: int
    payload_len: int
    block_len: int
    reserved_2: int


class Part(NamedTuple):
    """One tensor of an expert; `offset` counts from the start of the block."""

    projection: int
    role: int
    dtype: int
    mode: int
    ndim: int
    bits: int
    group_size: int
    rows: int
    cols: int
    offset: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.cols)[: self.ndim]

    def __str__(self) -> str:
        return f"{PROJECTIONS.get(self.projection)}.{ROLES.get(self.role)}"


class ExpertEntry(NamedTuple):
    layer: int
    expert: int
    layout: int
    flags: int
    offset: int
    length: int
    crc32: int
    reserved: int
    sha256: bytes


SUPERBLOCK = struct.Struct("<8sHHIQQQIIIIQII32s32s")
SECTION_ENTRY = struct.Struct("<4sIQQQII32sQ")
LAYT_HEADER = struct.Struct("<I12s")
LAYOUT_HEADER = struct.Struct("<HHIQQQ")
PART = struct.Struct("<BBBBBBHIIQQ")
EXPERT_ENTRY = struct.Struct("<HHHHQQII32s")

# --- Choices of this program ---------------------------------------------------------------------

LEVELS = ("framing", "structure", "semantics", "integrity")
# Of one code in one file, and of one rule in one index: enough to see the pattern.
MAX_LISTED = 1000
MAX_LISTED_OF_RULE = 16
PAGE_BYTES = 4096
READ_BYTES = 1 << 20
# What a thread takes at a time: reads stay nearly in file order, and no thread ends long after all.
STRETCH_BYTES = 32 << 20
# Hashed twice while in a core's cache: 1.0 processor second a GB, 1.3 in pieces of a whole read.
CACHED_BYTES = 256 << 10
INDEX_BATCH_BYTES = 64 << 10
COMPARE_BYTES = 1 << 20


def round_up(value: int, align: int) -> int:
    return -(-value // align) * align


def shown(value: object) -> str:
    """Return a value from a file in few, harmless characters."""
    text = ascii(value)
    return text if len(text) <= 72 else text[:69] + "..."


# --- Findings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Something that breaks the specification, by its code of section 15."""

    code: str
    message: str
    file: str
    offset: int | None = None
    layer: int | None = None
    expert: int | None = None

    def __str__(self) -> str:
        where = []
        if self.layer is not None:
            where.append(f"layer {self.layer}")
        if self.expert is not None:
            where.append(f"expert {self.expert}")
        if self.offset is not None:
            where.append(f"at {self.offset:#x}")
        place = f"{' '.join(where)}: " if where else ""
        return f"{self.file}: {place}{self.message} ({self.code})"


class Report:
    """Collects what was found; safe to use from several threads."""

    def __init__(self, path: str, level: str, against: str | None) -> None:
        self.path = path
        self.level = level
        self.against = against
        self.scope = "set"
        self.findings: list[Finding] = []
        self.unchecked: list[tuple[str, str]] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.bytes_checked = 0
        self.files_checked = 0
        self._lock = threading.Lock()

    def add(self, finding: Finding) -> None:
        key = (finding.file, finding.code)
        with self._lock:
            self.counts[key] += 1
            if self.counts[key] <= MAX_LISTED:
                self.findings.append(finding)

    def add_unchecked(self, file: str, message: str) -> None:
        with self._lock:
            if len(self.unchecked) < MAX_LISTED:
                self.unchecked.append((file, message))

    def add_bytes(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_checked += num_bytes

    @property
    def omitted(self) -> list[tuple[str, str, int]]:
        """(file, code, how many) of the findings that were counted but not kept."""
        return [
            (file, code, count - MAX_LISTED)
            for (file, code), count in self.counts.items()
            if count > MAX_LISTED
        ]

    @property
    def num_findings(self) -> int:
        return self.counts.total()

    @property
    def exit_code(self) -> int:
        codes = {code for _, code in self.counts}
        if codes - {"E_IO", "E_FILE_CHANGED"}:
            return 1
        if codes:
            return 3
        return 4 if self.unchecked else 0

    @property
    def verdict(self) -> str:
        return {0: "valid", 1: "invalid", 3: "unreadable", 4: "unchecked"}[self.exit_code]

    def as_dict(self) -> dict[str, Any]:
        """The shape of --json; the same set gives the same document."""
        return {
            "path": self.path,
            "scope": self.scope,
            "level": self.level,
            "against": self.against,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "findings": [vars(finding) for finding in self.findings],
            "omitted": [
                {"file": file, "code": code, "count": count} for file, code, count in self.omitted
            ],
            "unchecked": [{"file": file, "message": message} for file, message in self.unchecked],
            "files_checked": self.files_checked,
            "bytes_checked": self.bytes_checked,
        }


class Log:
    """Findings about one file."""

    def __init__(self, report: Report, file: str) -> None:
        self.report = report
        self.file = file

    def __call__(
        self,
        code: str,
        message: str,
        offset: int | None = None,
        layer: int | None = None,
        expert: int | None = None,
    ) -> None:
        self.report.add(Finding(code, message, self.file, offset, layer, expert))

    def unchecked(self, message: str) -> None:
        self.report.add_unchecked(self.file, message)

    def io_error(self, error: OSError, offset: int | None = None) -> None:
        if isinstance(error, FileNotFoundError):
            self("E_FILE_MISSING", "is not there", offset)
        elif isinstance(error, FileChanged):
            self("E_FILE_CHANGED", "is written to while it is being checked", offset)
        else:
            self("E_IO", str(error.strerror or error), offset)


class RuleLog:
    """A log that lists each rule's breaches a few times and counts the rest.

    One wrong number in a layout breaks a rule in every index entry.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.counts: Counter[str] = Counter()
        self.codes: dict[str, str] = {}

    def __call__(self, rule: str, code: str, message: str, offset: int, entry: ExpertEntry) -> None:
        self.counts[rule] += 1
        self.codes[rule] = code
        if self.counts[rule] <= MAX_LISTED_OF_RULE:
            self.log(code, message, offset, entry.layer, entry.expert)

    def close(self) -> None:
        for rule, count in self.counts.items():
            if count > MAX_LISTED_OF_RULE:
                more = count - MAX_LISTED_OF_RULE
                self.log(self.codes[rule], f"{more} more entries break the same rule: {rule}")


# --- Files ---------------------------------------------------------------------------------------


class FileChanged(OSError):
    """A file was cut short or written to while it was being checked."""


def open_regular(path: Path, extra_flags: int = 0) -> io.FileIO:
    """Open a regular file for reading; anything else is an OSError. Never waits for a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | extra_flags
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return io.FileIO(descriptor, "rb")


class File:
    """A regular file, read at offsets that were compared with its size before."""

    def __init__(self, path: Path) -> None:
        self._raw = open_regular(path)
        self.size = os.fstat(self._raw.fileno()).st_size

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def read_into(self, offset: int, view: memoryview) -> None:
        self._raw.seek(offset)
        done = 0
        while done < len(view):
            count = self._raw.readinto(view[done:])
            if not count:
                raise FileChanged
            done += count

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)


class UncachedFile:
    """A file read once, past the page cache where the system allows it; for several threads.

    So a model that is in use keeps its pages, and what is checked is the disk and not a copy of it
    in memory. It also saves the copy: a quarter of the processors' work.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._cached: io.FileIO | None = None
        try:
            self._raw = open_regular(path, getattr(os, "O_DIRECT", 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._raw = self._cached = open_regular(path)
        self._opened = os.fstat(self._raw.fileno())
        self.size = self._opened.st_size
        if sys.platform == "darwin":
            fcntl = importlib.import_module("fcntl")
            fcntl.fcntl(self._raw.fileno(), fcntl.F_NOCACHE, 1)

    def __enter__(self) -> UncachedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()
        if self._cached is not None:
            self._cached.close()

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view`, page aligned and a multiple of 4096 long, or what is left of the file."""
        wanted = min(len(view), self.size - offset)
        done = 0
        while done < wanted:
            count = self._read(offset + done, view[done:])
            if not count:
                raise FileChanged
            done += count
        if self._cached is not None and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._cached.fileno(), offset, done, os.POSIX_FADV_DONTNEED)
        return done

    def _read(self, offset: int, view: memoryview) -> int:
        try:
            return self._read_at(self._cached or self._raw, offset, view)
        except OSError as error:
            if error.errno != errno.EINVAL or self._cached is self._raw:
                raise
        # Some filesystems take O_DIRECT and refuse the read.
        with self._lock:
            self._cached = self._cached or open_regular(self._path)
        return self._read_at(self._cached, offset, view)

    def _read_at(self, raw: io.FileIO, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(raw.fileno(), [view], offset)
        with self._lock:
            raw.seek(offset)
            return raw.readinto(view) or 0

    def check_unchanged(self) -> None:
        """Raise FileChanged if the file was written to since it was opened."""
        after = os.fstat(self._raw.fileno())
        if (after.st_size, after.st_mtime_ns) != (self.size, self._opened.st_mtime_ns):
            raise FileChanged


# --- JSON ----------------------------------------------------------------------------------------

JSON_SPACE = re.compile(r"[ \t\n\r]*+")
# Possessive, so that a long string is matched in constant memory.
JSON_TOKEN_PATTERN = (
    r"([{}\[\],:])"
    r'|"([^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+)"'
    r"|(-?(?:0|[1-9][0-9]*+))((?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+)"
    r"|true|false|null"
)
JSON_TOKEN = re.compile(JSON_TOKEN_PATTERN)
# What Python's own json module writes, and so stands in config.json.
PYTHON_JSON_TOKEN = re.compile(JSON_TOKEN_PATTERN + "|NaN|-?Infinity")
JSON_DECODER = json.JSONDecoder()
JSON_ESCAPE = re.compile(r"\\(?:u....|.)")
CANONICAL_ESCAPE = re.compile(r'\\(?:["\\bfnrt]|u00(?:0[0-7be]|1[0-9a-f]))')
UNPAIRED_SURROGATE = re.compile(r"[\ud800-\udfff]")

JsonProblem = Callable[[str, str, int], None]


class JsonStop(Exception):
    """The text is no JSON from here on, or a limit makes going on pointless."""

    def __init__(self, code: str, message: str, position: int) -> None:
        super().__init__(message)
        self.code, self.message, self.position = code, message, position


class JsonScanner:
    """Walks over a JSON text without building values, and reports what breaks section 7.1.

    Memory: the keys of the objects that are open.
    """

    def __init__(self, text: str, problem: JsonProblem, *, canonical: bool) -> None:
        self.text = text
        self.problem = problem
        self.canonical = canonical
        self.max_depth = MAX_JSON_DEPTH
        self.token = JSON_TOKEN
        self.state = "value"
        self.open: list[str] = []
        self.keys: list[set[str]] = []
        self.last_key: list[str | None] = []
        self.num_values = 0
        self.spaced = False

    def run(self) -> None:
        position = 0
        while True:
            position = self._skip_space(position)
            if position == len(self.text):
                break
            token = self.token.match(self.text, position)
            if token is None or self.state == "end":
                raise self._unexpected(position)
            self._step(token, position)
            position = token.end()
        if self.state != "end":
            raise JsonStop("E_JSON", "the text ends too early", position)

    def _skip_space(self, position: int) -> int:
        found = JSON_SPACE.match(self.text, position)
        end = found.end() if found else position
        if end > position and self.canonical and not self.spaced:
            self.spaced = True
            self.problem("E_JSON_CANONICAL", "space between tokens", position)
        return end

    def _unexpected(self, position: int) -> JsonStop:
        seen = shown(self.text[position : position + 16])
        return JsonStop("E_JSON", f"{seen} where {self.state} was wanted", position)

    def _step(self, token: re.Match[str], position: int) -> None:
        mark = token.group(1)
        if mark is None:
            self._scalar(token, position)
        elif mark in "{[":
            self._enter(mark, position)
        elif mark in "}]":
            self._leave(mark, position)
        elif mark == ":" and self.state == "colon":
            self.state = "value"
        elif mark == "," and self.state == "comma or end":
            self.state = "key" if self.open[-1] == "{" else "value"
        else:
            raise self._unexpected(position)

    def _count(self, position: int) -> None:
        self.num_values += 1
        if self.num_values > MAX_JSON_VALUES:
            message = f"more than {MAX_JSON_VALUES} values; not looked at beyond"
            raise JsonStop("E_JSON_VALUE", message, position)

    def _enter(self, mark: str, position: int) -> None:
        if self.state not in ("value", "value or end"):
            raise self._unexpected(position)
        if len(self.open) == self.max_depth:
            message = f"nested deeper than {self.max_depth}; not looked at beyond"
            raise JsonStop("E_JSON_VALUE", message, position)
        self._count(position)
        self.open.append(mark)
        self.keys.append(set())
        self.last_key.append(None)
        self.state = "key or end" if mark == "{" else "value or end"

    def _leave(self, mark: str, position: int) -> None:
        pair = {"}": "{", "]": "["}[mark]
        if not self.open or self.open[-1] != pair or not self.state.endswith("end"):
            raise self._unexpected(position)
        self.open.pop()
        self.keys.pop()
        self.last_key.pop()
        self._value_done()

    def _value_done(self) -> None:
        self.state = "comma or end" if self.open else "end"

    def _scalar(self, token: re.Match[str], position: int) -> None:
        string = token.group(2)
        if self.state in ("key", "key or end") and string is not None:
            self._key(self._string(string, position), position)
            self.state = "colon"
            return
        if self.state not in ("value", "value or end"):
            raise self._unexpected(position)
        self._count(position)
        if string is not None:
            self._string(string, position)
        elif token.group(3) is not None:
            self._number(token.group(3), token.group(4), position)
        self._value_done()

    def _number(self, integer: str, rest: str, position: int) -> None:
        if rest:
            self.problem("E_JSON_VALUE", f"{shown(integer + rest)} is not an integer", position)
        elif len(integer) > 17 or abs(int(integer)) > MAX_JSON_INTEGER:
            self.problem("E_JSON_VALUE", f"{shown(integer)} is beyond 2^53 - 1", position)
        elif integer == "-0":
            code = "E_JSON_CANONICAL" if self.canonical else "E_JSON_VALUE"
            self.problem(code, "-0, wanted 0", position)

    def _string(self, raw: str, position: int) -> str:
        value = raw
        if "\\" in raw:
            value, _ = JSON_DECODER.raw_decode(f'"{raw}"')
            if UNPAIRED_SURROGATE.search(value):
                self.problem("E_JSON_VALUE", f"unpaired surrogate in {shown(raw)}", position)
            elif self.canonical and not _escapes_are_canonical(raw):
                self.problem("E_JSON_CANONICAL", f"escapes in {shown(raw)}", position)
        if len(value) > MAX_JSON_STRING_BYTES // 4:
            length = len(value.encode("utf-8", "surrogatepass"))
            if length > MAX_JSON_STRING_BYTES:
                message = f"a string of {length} bytes, wanted at most {MAX_JSON_STRING_BYTES}"
                self.problem("E_JSON_VALUE", message, position)
        return value

    def _key(self, key: str, position: int) -> None:
        keys, last = self.keys[-1], self.last_key[-1]
        if key in keys:
            self.problem("E_JSON_DUPLICATE_KEY", f"key {shown(key)} is there twice", position)
        elif self.canonical and last is not None and key < last:
            message = f"key {shown(key)} after {shown(last)}"
            self.problem("E_JSON_CANONICAL", message, position)
        keys.add(key)
        self.last_key[-1] = key


def _escapes_are_canonical(raw: str) -> bool:
    return all(CANONICAL_ESCAPE.fullmatch(found.group()) for found in JSON_ESCAPE.finditer(raw))


# What a text that is no JSON has for a value; None is that of `null`.
NO_VALUE = object()


def parse_json(data: bytes, log: Log, offset: int | None, *, canonical: bool) -> Any:
    """Return the value of a JSON text, or NO_VALUE after saying why there is none.

    offset: of the text in its file, for findings; None when it was compressed.
    """
    codes: Counter[str] = Counter()

    def say(code: str, message: str, byte: int) -> None:
        codes[code] += 1
        log(code, message, None if offset is None else offset + byte)

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        say("E_JSON", f"not UTF-8: {error.reason}", error.start)
        return NO_VALUE
    place = TextPlace(text)

    def problem(code: str, message: str, position: int) -> None:
        say(code, message, place.byte_of(position))
        if codes.total() == MAX_LISTED:
            raise JsonStop(code, "as many faults as are listed; not looked at beyond", position)

    try:
        JsonScanner(text, problem, canonical=canonical).run()
    except JsonStop as stop:
        problem(stop.code, stop.message, stop.position)
    return json.loads(text) if codes.keys() <= {"E_JSON_CANONICAL"} else NO_VALUE


class TextPlace:
    """Byte offsets of positions in a text, asked for in ascending order.

    Counted on from the one before: a text may have a fault in every other character.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = self._byte = 0

    def byte_of(self, position: int) -> int:
        self._byte += len(self._text[self._position : position].encode())
        self._position = max(self._position, position)
        return self._byte


def is_int(value: object, low: int = 0, high: int = MAX_JSON_INTEGER) -> TypeGuard[int]:
    return type(value) is int and low <= value <= high


def is_digest(value: object) -> bool:
    return isinstance(value, str) and HEX_DIGEST.fullmatch(value) is not None


# --- zstd ----------------------------------------------------------------------------------------


def zstd_frame_problem(data: bytes, raw_len: int) -> str | None:
    """Return what is wrong with a zstd frame, from its headers alone (RFC 8878), or None."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        return "does not begin with 28 b5 2f fd"
    if len(data) < 6:
        return "the frame header is cut off"
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    if descriptor & 8:
        return "a reserved bit of the frame header is set"
    position = 5 if single_segment else 6
    fields_end = position + dictionary_bytes + size_bytes
    if fields_end > len(data):
        return "the frame header is cut off"
    if any(data[position : position + dictionary_bytes]):
        return "needs a dictionary"
    if size_bytes == 0:
        return "does not announce its content size"
    size = int.from_bytes(data[fields_end - size_bytes : fields_end], "little")
    size += 256 if size_bytes == 2 else 0
    if size != raw_len:
        return f"content size is {size}, raw_len {raw_len}"
    exponent, mantissa = data[5] >> 3, data[5] & 7
    window = size if single_segment else (1 << 10 + exponent) // 8 * (8 + mantissa)
    if window > MAX_ZSTD_WINDOW_BYTES:
        return f"window is {window} bytes, wanted at most {MAX_ZSTD_WINDOW_BYTES}"
    return _zstd_blocks_problem(data, fields_end, checksum_bytes=descriptor & 4)


def _zstd_blocks_problem(data: bytes, position: int, *, checksum_bytes: int) -> str | None:
    """Walk over the blocks' headers to the end of the frame, which must be that of the data."""
    last = False
    while not last:
        if position + 3 > len(data):
            return "the frame is cut off"
        header = int.from_bytes(data[position : position + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == 3 or size > 128 << 10:
            return f"impossible block header at byte {position}"
        position += 3 + (1 if kind == 1 else size)
    position += checksum_bytes
    if position == len(data):
        return None
    return f"the frame ends at byte {position} of {len(data)}"


class NoDecoder(Exception):
    """This Python has no zstd."""


def zstd_decode(data: bytes, raw_len: int) -> bytes | None:
    """Return the content of a frame that passed zstd_frame_problem, or None if it is damaged."""
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        raise NoDecoder from None
    decoder = zstd.ZstdDecompressor()
    try:
        raw: bytes = decoder.decompress(data, max_length=raw_len + 1)
    except (zstd.ZstdError, EOFError):
        return None
    return raw if len(raw) == raw_len and decoder.eof else None


# --- Digests -------------------------------------------------------------------------------------


class MerkleTree:
    """Tree hash of RFC 9162, section 2.1.1, over leaves given one by one; memory grows with log n.

    Holds the roots of full subtrees, largest first, as (number of leaves, hash).
    """

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._full: list[tuple[int, bytes]] = []
        for leaf in leaves:
            self.add(leaf)

    def add(self, leaf: bytes) -> None:
        size, node = 1, hashlib.sha256(b"\x00" + leaf).digest()
        while self._full and self._full[-1][0] == size:
            node = hashlib.sha256(b"\x01" + self._full.pop()[1] + node).digest()
            size *= 2
        self._full.append((size, node))

    def root(self) -> bytes:
        if not self._full:
            return hashlib.sha256(b"").digest()
        node = self._full[-1][1]
        for _, left in reversed(self._full[:-1]):
            node = hashlib.sha256(b"\x01" + left + node).digest()
        return node


# --- One shard: framing --------------------------------------------------------------------------


@dataclass
class Section:
    """A row of the section table, at `at` in the file.

    readable: it lies in the file (BLKS: begins in it) and its codec and size are allowed.
    placed: it begins and ends where sections may.
    intact: its crc32 or its sha256 agrees; None as long as nobody looked.
    """

    entry: SectionEntry
    at: int
    readable: bool = True
    placed: bool = True
    intact: bool | None = None

    @property
    def name(self) -> str:
        tag = self.entry.tag
        return tag.decode() if is_tag(tag) else tag.hex(" ")

    @property
    def critical(self) -> bool:
        return self.entry.tag[:1].isupper()

    @property
    def end(self) -> int:
        return self.entry.offset + self.entry.stored_len


@dataclass
class Layout:
    """sound: its parts keep all rules, so their places in a block can be relied on.

    measured: payload_len and block_len at least are those of the parts.
    """

    payload_len: int
    block_len: int
    part_data: bytes
    sound: bool
    measured: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """Unpacked when asked for: a quarter of a million of them are 60 MB."""
        return tuple(Part(*fields) for fields in PART.iter_unpack(self.part_data))


@dataclass
class LayerRun:
    """The experts of a layer: `count` entries of EXPT from number `first` on."""

    layer: int
    layout: int
    first: int
    count: int


class DenseTensor(NamedTuple):
    """begin, end: offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass
class Shard:
    """A .kexp file and what could be learned from it; None is what could not."""

    path: Path
    log: Log
    size: int = 0
    header: Superblock | None = None
    header_intact: bool = False
    root_follows: bool = True
    table_intact: bool = False
    sections: list[Section] = field(default_factory=list)
    layouts: list[Layout] | None = None
    layout_digest: bytes | None = None
    layers: list[LayerRun] | None = None
    meta: dict[str, Any] | None = None
    dense: dict[str, DenseTensor] | None = None

    def section(self, tag: bytes) -> Section | None:
        """The first readable section of this tag."""
        return next((s for s in self.sections if s.entry.tag == tag and s.readable), None)

    @property
    def is_only(self) -> bool:
        return self.header is not None and self.header.shard_count == 1


def is_tag(tag: bytes) -> bool:
    return tag.isalpha() and tag.isascii()


def shard_file_name(shard_no: int, shard_count: int) -> str:
    if shard_count == 1:
        return "model.kexp"
    return f"model-{shard_no + 1:05d}-of-{shard_count:05d}.kexp"


def check_framing(shard: Shard, file: File) -> None:
    """Superblock, section table, extents, padding between sections, shard root."""
    shard.size = file.size
    if file.size < HEADER_SIZE:
        shard.log("E_FILE_SIZE", f"{file.size} bytes, wanted at least {HEADER_SIZE}")
        return
    data = file.read(0, HEADER_SIZE)
    header = Superblock(*SUPERBLOCK.unpack_from(data))
    if not check_superblock(shard, header, data):
        return
    shard.header = header
    if not read_section_table(shard, header, file):
        return
    check_section_set(shard, header)
    place_sections(shard, header, file)
    check_shard_root(shard, header, data)


def check_superblock(shard: Shard, header: Superblock, data: bytes) -> bool:
    """Return whether the rest of the file can be made sense of."""
    log = shard.log
    if header.magic != MAGIC:
        log("E_MAGIC", f"begins with {header.magic.hex(' ')}, wanted {MAGIC.hex(' ')}", 0)
        return False
    if header.version_major != VERSION_MAJOR:
        log("E_VERSION", f"version_major is {header.version_major}, wanted {VERSION_MAJOR}", 8)
        return False
    if header.header_size != HEADER_SIZE:
        log("E_HEADER", f"header_size is {header.header_size}, wanted {HEADER_SIZE}", 12)
    (wanted,) = struct.unpack_from("<I", data, HEADER_SIZE - 4)
    seen = zlib.crc32(data[: HEADER_SIZE - 4])
    shard.header_intact = seen == wanted
    if seen != wanted:
        log("E_HEADER_CRC", f"crc32 of the superblock {seen:08x} != {wanted:08x}", HEADER_SIZE - 4)
    unknown = header.incompat_features & ~KNOWN_INCOMPAT_FEATURES
    for bit in range(64):
        if unknown >> bit & 1:
            log("E_FEATURE", f"bit {bit} of incompat_features is not known", 16)
    if header.file_size != shard.size:
        log("E_FILE_SIZE", f"{shard.size} bytes, superblock says {header.file_size}", 32)
    check_superblock_fields(shard, header)
    check_zeros(log, data[SUPERBLOCK.size : -4], SUPERBLOCK.size, "superblock")
    # An unknown feature changes the meaning of what follows; a damaged bit does not.
    readable = not (unknown and shard.header_intact)
    return readable and 1 <= header.section_count <= MAX_SECTIONS


def check_superblock_fields(shard: Shard, header: Superblock) -> None:
    log = shard.log
    for name, at, wanted in (
        ("block_align", 40, BLOCK_ALIGN),
        ("tensor_align", 44, TENSOR_ALIGN),
        ("section_off", 56, HEADER_SIZE),
    ):
        seen = getattr(header, name)
        if seen != wanted:
            log("E_HEADER", f"{name} is {seen}, wanted {wanted}", at)
    for name, at, most in (("shard_count", 52, MAX_SHARDS), ("section_count", 64, MAX_SECTIONS)):
        seen = getattr(header, name)
        if not 1 <= seen <= most:
            log("E_HEADER", f"{name} is {seen}, wanted 1..{most}", at)
    if header.shard_no >= header.shard_count:
        message = f"shard_no is {header.shard_no}, wanted below shard_count {header.shard_count}"
        log("E_HEADER", message, 48)
        return
    name = shard.path.name
    wanted_name = shard_file_name(header.shard_no, header.shard_count)
    if SHARD_NAME.fullmatch(name) and name != wanted_name:
        log("E_SHARD_NAME", f"superblock says shard {header.shard_no} of {header.shard_count}", 48)


def check_zeros(log: Log, data: bytes, offset: int, what: str) -> None:
    rest = data.lstrip(b"\0")
    if rest:
        at = offset + len(data) - len(rest)
        log("E_PADDING", f"byte {rest[0]:#04x} in the padding of {what}, wanted zero", at)


def read_section_table(shard: Shard, header: Superblock, file: File) -> bool:
    length = header.section_count * SECTION_ENTRY.size
    if length > file.size - HEADER_SIZE:
        shard.log("E_FILE_SIZE", "the file ends inside its section table", HEADER_SIZE)
        return False
    table = file.read(HEADER_SIZE, length)
    seen = zlib.crc32(table)
    shard.table_intact = seen == header.table_crc
    if not shard.table_intact:
        message = f"crc32 of the section table {seen:08x} != {header.table_crc:08x}"
        shard.log("E_TABLE_CRC", message, 68)
    for index, fields in enumerate(SECTION_ENTRY.iter_unpack(table)):
        at = HEADER_SIZE + index * SECTION_ENTRY.size
        section = Section(SectionEntry(*fields), at)
        check_section_entry(shard.log, section)
        shard.sections.append(section)
    return True


def check_section_entry(log: Log, section: Section) -> None:
    """The rules that an entry breaks by itself."""
    entry, at = section.entry, section.at
    known = SECTIONS_ONLY
    if not is_tag(entry.tag):
        log("E_SECTION_TAG", f"tag {entry.tag.hex(' ')} is not letters", at)
        section.readable = False
    elif section.critical and entry.tag not in known:
        log("E_SECTION_TAG", f"critical section {section.name} is not known", at)
        section.readable = False
    if entry.reserved or entry.reserved_2:
        log("E_PADDING", f"reserved fields of section {section.name} are not zero", at)
    if entry.tag == b"BLKS" and entry.crc32:
        log("E_SECTION_CRC", f"crc32 of BLKS is {entry.crc32:08x}, wanted zero", at + 32)
    check_codec(log, section)
    cap = MAX_RAW_BYTES.get(entry.tag)
    if entry.codec == CODEC_ZSTD:
        cap = min(cap or MAX_COMPRESSED_RAW_BYTES, MAX_COMPRESSED_RAW_BYTES)
    if cap is not None and max(entry.raw_len, entry.stored_len) > cap:
        message = f"section {section.name} of {entry.raw_len} bytes, wanted at most {cap}"
        log("E_LIMIT", message, at + 24)
        section.readable = False


def check_codec(log: Log, section: Section) -> None:
    entry, at = section.entry, section.at
    if entry.codec not in (CODEC_RAW, CODEC_ZSTD):
        log("E_SECTION_CODEC", f"codec {entry.codec} of {section.name} is not known", at + 4)
        section.readable = False
    elif entry.codec == CODEC_ZSTD and entry.tag in RAW_ONLY:
        log("E_SECTION_CODEC", f"{section.name} is compressed, wanted codec 0", at + 4)
        section.readable = False
    elif entry.codec == CODEC_ZSTD and entry.stored_len >= entry.raw_len:
        message = f"{section.name}: stored_len {entry.stored_len}, wanted below {entry.raw_len}"
        log("E_SECTION_EXTENT", message, at + 16)
    elif entry.codec == CODEC_RAW and entry.stored_len != entry.raw_len:
        message = f"{section.name}: stored_len {entry.stored_len}, raw_len {entry.raw_len}"
        log("E_SECTION_EXTENT", message + ", wanted equal", at + 16)


def check_section_set(shard: Shard, header: Superblock) -> None:
    if header.shard_no >= header.shard_count:
        return
    of_several = SECTIONS_OTHER if header.shard_no else SECTIONS_FIRST
    wanted = SECTIONS_ONLY if header.shard_count == 1 else of_several
    named = [section for section in shard.sections if is_tag(section.entry.tag)]
    seen = [section.entry.tag for section in named if section.critical]
    known = len(named) == len(shard.sections) and set(seen) <= set(SECTIONS_ONLY)
    if known and seen != list(wanted):
        message = f"critical sections are {_names(seen)}, wanted {_names(wanted)}"
        shard.log("E_SECTION_SET", message, HEADER_SIZE)
    ancillary: set[bytes] = set()
    for section in named:
        tag = section.entry.tag
        if section.critical and ancillary:
            message = f"critical section {section.name} after an ancillary one"
            shard.log("E_SECTION_SET", message, section.at)
        elif tag in ancillary:
            shard.log("E_SECTION_SET", f"section {section.name} is there twice", section.at)
        elif not section.critical:
            ancillary.add(tag)


def _names(tags: Sequence[bytes]) -> str:
    return " ".join(tag.decode() for tag in tags) or "none"


def place_sections(shard: Shard, header: Superblock, file: File) -> None:
    """Compare the sections' places with those that their lengths give.

    After a misplaced section two places are accepted for the next: after where it says it is, and
    after where it belongs. So one wrong number is one finding.
    """
    log = shard.log
    # A file cut short was reported as such: its sections are compared with the size it had.
    claimed = max(file.size, header.file_size)
    ends = [HEADER_SIZE + SECTION_ENTRY.size * len(shard.sections)]
    for section in shard.sections:
        entry = section.entry
        align = BLOCK_ALIGN if entry.tag in BLOCK_ALIGNED else TENSOR_ALIGN
        starts = [round_up(end, align) for end in ends]
        leaves = entry.offset > claimed or entry.stored_len > claimed - entry.offset
        if not entry.stored_len or not entry.raw_len:
            log("E_SECTION_EXTENT", f"section {section.name} is empty", section.at + 16)
        if entry.offset not in starts:
            message = f"section {section.name} begins at {entry.offset:#x}, wanted {starts[0]:#x}"
            log("E_SECTION_EXTENT", message, section.at + 8)
            section.readable = section.placed = False
        elif leaves:
            message = f"section {section.name} of {entry.stored_len} bytes leaves the file"
            log("E_SECTION_EXTENT", message, section.at + 16)
            section.placed = False
        elif entry.offset <= file.size:
            end = ends[starts.index(entry.offset)]
            gap = file.read(end, entry.offset - end)
            check_zeros(log, gap, end, f"section {section.name}")
        section.readable &= _lies_in_file(section, file.size) and entry.stored_len > 0
        ends = [starts[0] + entry.stored_len]
        if not leaves:
            ends.append(section.end)
    if shard.sections[-1].placed and not {file.size, header.file_size} & set(ends):
        message = f"the last section ends at {ends[0]:#x}, the file at {file.size:#x}"
        log("E_SECTION_EXTENT", message)


def _lies_in_file(section: Section, size: int) -> bool:
    entry = section.entry
    if entry.tag == b"BLKS":  # the blocks that are left of a file cut short are still checked
        return entry.offset < size
    return entry.offset <= size and entry.stored_len <= size - entry.offset


def check_shard_root(shard: Shard, header: Superblock, data: bytes) -> None:
    if not (shard.header_intact and shard.table_intact):
        return  # its inputs were reported
    leaves = [data[:24] + data[40:56]]
    for section in shard.sections:
        entry = section.entry
        if section.critical:
            leaves.append(entry.tag + struct.pack("<Q", entry.raw_len) + entry.sha256)
    root = MerkleTree(leaves).root()
    if root != header.shard_root:
        message = f"shard root {header.shard_root.hex()}, the sections give {root.hex()}"
        shard.log("E_SHARD_ROOT", message, 104)
        shard.root_follows = False


# --- One shard: structure ------------------------------------------------------------------------


def check_structure(shard: Shard, file: File) -> None:
    """META, LAYT, EXPT and the header of DENS, each by itself."""
    meta = shard.section(b"META")
    if meta and (data := load_section(shard, meta, file)) is not None:
        value = parse_json(data, shard.log, text_offset(meta), canonical=True)
        if isinstance(value, dict):
            shard.meta = value
        elif value is not NO_VALUE:
            shard.log("E_META", "META is not an object", meta.entry.offset)
    layt = shard.section(b"LAYT")
    if layt and (data := load_section(shard, layt, file)) is not None:
        shard.layout_digest = hashlib.sha256(data).digest()
        shard.layouts = LayoutReader(shard.log, layt, data).run()
    expt = shard.section(b"EXPT")
    if expt:
        check_index(shard, expt, file)
    dens = shard.section(b"DENS")
    if dens:
        read_dense_header(shard, dens, file)


def text_offset(section: Section) -> int | None:
    return section.entry.offset if section.entry.codec == CODEC_RAW else None


def load_section(shard: Shard, section: Section, file: File) -> bytes | None:
    """Return a small section's raw bytes, or None if they are damaged or cannot be decoded.

    Its size was compared with its limit before.
    """
    entry = section.entry
    stored = file.read(entry.offset, entry.stored_len)
    crc32 = zlib.crc32(stored)
    raw: bytes | None = stored
    if entry.codec == CODEC_ZSTD:
        raw = decode_section(shard.log, section, stored) if crc32 == entry.crc32 else None
    sha256 = hashlib.sha256(raw).digest() if raw is not None else entry.sha256
    judge_section(shard.log, section, crc32, sha256)
    return raw if section.intact else None


def judge_section(log: Log, section: Section, crc32: int, sha256: bytes) -> None:
    """sha256: as computed; the entry's own where the raw bytes are not known."""
    entry = section.entry
    section.intact = crc32 == entry.crc32 or sha256 == entry.sha256
    if crc32 != entry.crc32:
        message = f"crc32 of section {section.name} {crc32:08x} != {entry.crc32:08x}"
        log("E_SECTION_CRC", message, entry.offset)
    elif sha256 != entry.sha256:
        message = f"sha256 of section {section.name} {sha256.hex()} != {entry.sha256.hex()}"
        log("E_SECTION_SHA256", message, entry.offset)


def decode_section(log: Log, section: Section, stored: bytes) -> bytes | None:
    entry = section.entry
    problem = zstd_frame_problem(stored, entry.raw_len)
    if problem is None:
        try:
            raw = zstd_decode(stored, entry.raw_len)
        except NoDecoder:
            log.unchecked(f"section {section.name} is compressed: needs Python 3.14 or later")
            return None
        if raw is not None:
            return raw
        problem = "cannot be decoded"
    log("E_SECTION_CODEC", f"section {section.name}: zstd frame: {problem}", entry.offset)
    return None


class LayoutReader:
    """Reads LAYT, section 8."""

    def __init__(self, log: Log, section: Section, data: bytes) -> None:
        self.log = log
        self.data = data
        self.base = text_offset(section)
        self.position = 0
        self.sound = True

    def say(self, message: str, at: int, code: str = "E_LAYOUT") -> None:
        self.sound = False
        self.log(code, message, None if self.base is None else self.base + at)

    def run(self) -> list[Layout] | None:
        """Return the layouts, or None when not even their number can be relied on."""
        if len(self.data) < LAYT_HEADER.size:
            self.say(f"LAYT has {len(self.data)} bytes, wanted at least {LAYT_HEADER.size}", 0)
            return None
        count, reserved = LAYT_HEADER.unpack_from(self.data)
        if any(reserved):
            self.say("reserved bytes of LAYT are not zero", 4)
        if not 1 <= count <= MAX_LAYOUTS:
            self.say(f"layout_count is {count}, wanted 1..{MAX_LAYOUTS}", 0)
            return None
        self.position = LAYT_HEADER.size
        layouts = []
        for index in range(count):
            layout = self.layout(index)
            if layout is None:
                return None
            layouts.append(layout)
        if self.position != len(self.data):
            message = f"{len(self.data) - self.position} bytes after the last part of LAYT"
            self.say(message, self.position)
        return layouts

    def layout(self, index: int) -> Layout | None:
        at = self.position
        self.sound = True
        if LAYOUT_HEADER.size > len(self.data) - at:
            self.say(f"LAYT ends inside layout {index}", at)
            return None
        head = LayoutHeader(*LAYOUT_HEADER.unpack_from(self.data, at))
        self.position += LAYOUT_HEADER.size
        if not 1 <= head.part_count <= MAX_PARTS:
            self.say(f"layout {index}: part_count {head.part_count}, wanted 1..{MAX_PARTS}", at + 2)
            return None
        length = head.part_count * PART.size
        if length > len(self.data) - self.position:
            self.say(f"LAYT ends inside the parts of layout {index}", at)
            return None
        parts_at = self.position
        self.position += length
        parts = tuple(Part(*f) for f in PART.iter_unpack(self.data[parts_at : self.position]))
        self.check_parts(index, parts, parts_at)
        measured = self.check_head(index, head, parts, at)
        part_data = self.data[parts_at : self.position]
        return Layout(head.payload_len, head.block_len, part_data, self.sound, measured)

    def check_head(self, index: int, head: LayoutHeader, parts: Sequence[Part], at: int) -> bool:
        """Return whether the two lengths are right."""
        if head.id != index:
            self.say(f"layout {index} has id {head.id}", at)
        if head.reserved or head.reserved_2:
            self.say(f"reserved fields of layout {index} are not zero", at + 4)
        end = parts[-1].offset + parts[-1].length
        if head.payload_len != end:
            message = f"layout {index}: payload_len {head.payload_len}, its last part ends at {end}"
            self.say(message, at + 8)
        block_len = round_up(head.payload_len, BLOCK_ALIGN)
        if head.block_len != block_len:
            message = f"layout {index}: block_len {head.block_len}, wanted {block_len}"
            self.say(message, at + 16)
        return (head.payload_len, head.block_len) == (end, block_len)

    def check_parts(self, index: int, parts: Sequence[Part], at: int) -> None:
        position, before = 0, (0, 0)
        readable = True
        for number, part in enumerate(parts):
            part_at = at + number * PART.size
            label = f"layout {index} part {number}"
            readable &= self.check_part(label, part, part_at)
            if (part.projection, part.role) <= before:
                self.say(f"{label} ({part}) is out of order or there twice", part_at)
            before = (part.projection, part.role)
            start = round_up(position, TENSOR_ALIGN)
            if part.offset != start:
                self.say(f"{label} ({part}) begins at {part.offset}, wanted {start}", part_at + 16)
            position = start + part.length
            if position > MAX_PAYLOAD_BYTES:
                self.say(f"{label} ({part}) ends beyond {MAX_PAYLOAD_BYTES}", part_at + 24)
                position = 0
        if readable:
            self.check_projections(index, parts, at)

    def check_part(self, label: str, part: Part, at: int) -> bool:
        """Check a part by itself; return whether its codes are known."""
        known = True
        for field_at, name, table in (
            (0, "projection", PROJECTIONS),
            (1, "role", ROLES),
            (3, "mode", MODES),
        ):
            code = getattr(part, name)
            if code not in table:
                self.say(f"{label}: {name} {code} is not known", at + field_at)
                known = False
        if part.ndim > 2:
            self.say(f"{label}: ndim is {part.ndim}, wanted 0..2", at + 4)
        if not part.rows or (part.ndim == 0 and part.rows != 1):
            self.say(f"{label}: rows is {part.rows} with ndim {part.ndim}", at + 8)
        if not part.cols or (part.ndim < 2 and part.cols != 1):
            self.say(f"{label}: cols is {part.cols} with ndim {part.ndim}", at + 12)
        if part.dtype not in DTYPES:
            self.say(f"{label}: dtype {part.dtype} is not known", at + 2, "E_DTYPE")
            return False
        bits = part.rows * part.cols * DTYPES[part.dtype][1]
        if bits % 8:
            self.say(f"{label}: {bits} bits are not whole bytes", at + 2, "E_DTYPE")
        elif part.length != bits // 8:
            self.say(f"{label}: length {part.length}, wanted {bits // 8}", at + 24)
        return known

    def check_projections(self, index: int, parts: Sequence[Part], at: int) -> None:
        """The rules between the parts of a projection."""
        by_projection: dict[int, dict[int, Part]] = {}
        for part in parts:
            by_projection.setdefault(part.projection, {})[part.role] = part
        for code, roles in by_projection.items():
            label = f"layout {index} {PROJECTIONS[code]}"
            weight = roles.get(WEIGHT)
            if weight is None:
                self.say(f"{label} has no weight", at)
                continue
            if weight.ndim != 2:
                self.say(f"{label}: weight has {weight.ndim} dimensions, wanted 2", at)
                continue
            bias = roles.get(BIAS)
            if bias is not None:
                self.check_bias(label, bias, weight, at)
            if weight.mode == MODE_NONE:
                self.check_plain(label, roles, at)
            else:
                self.check_quantized(label, weight, roles, at)

    def check_bias(self, label: str, bias: Part, weight: Part, at: int) -> None:
        if (bias.mode, bias.bits, bias.group_size) != (MODE_NONE, 0, 0):
            self.say(f"{label}: bias is quantized, wanted mode none", at)
        if bias.shape != (weight.rows,):
            self.say(f"{label}: bias has shape {bias.shape}, wanted ({weight.rows},)", at)

    def check_plain(self, label: str, roles: dict[int, Part], at: int) -> None:
        for role, part in roles.items():
            if role in (SCALES, BIASES, GLOBAL_SCALE):
                self.say(f"{label}: {ROLES[role]} beside a weight of mode none", at)
            elif part.mode != MODE_NONE or part.bits or part.group_size:
                message = f"{label}: {ROLES[role]} has a mode, bits or group_size, wanted none"
                self.say(message, at)

    def check_quantized(self, label: str, weight: Part, roles: dict[int, Part], at: int) -> None:
        rule = MODE_RULES[weight.mode]
        mode = MODES[weight.mode]
        if weight.bits not in rule.bits or weight.group_size not in rule.group_sizes:
            message = f"{label}: {weight.bits} bits in groups of {weight.group_size}"
            self.say(f"{message}, not a kind of {mode}", at)
            return
        present = frozenset(roles) & {SCALES, BIASES, GLOBAL_SCALE}
        if present - rule.optional != rule.required:
            seen = " ".join(ROLES[role] for role in sorted(present)) or "nothing"
            wanted = " ".join(ROLES[role] for role in sorted(rule.required))
            self.say(f"{label}: {seen} beside a weight of mode {mode}, wanted {wanted}", at)
        for role in frozenset(roles) & {SCALES, BIASES, GLOBAL_SCALE}:
            part = roles[role]
            kind = (part.mode, part.bits, part.group_size)
            if kind != (weight.mode, weight.bits, weight.group_size):
                self.say(f"{label}: {ROLES[role]} is of another quantization than the weight", at)
        self.check_groups(label, weight, roles, rule, at)
        scale = roles.get(GLOBAL_SCALE)
        if scale is not None and (scale.dtype != F32 or scale.rows * scale.cols != 1):
            self.say(f"{label}: global_scale is not one f32", at)

    def check_groups(
        self, label: str, weight: Part, roles: dict[int, Part], rule: ModeRule, at: int
    ) -> None:
        if weight.dtype != U32:
            self.say(f"{label}: weight is {DTYPES[weight.dtype][0]}, wanted u32", at)
        width, rest = divmod(weight.cols * 32, weight.bits)
        if rest or width % weight.group_size:
            message = f"{label}: {weight.cols} words are not whole groups of {weight.group_size}"
            self.say(message, at)
            return
        shape = (weight.rows, width // weight.group_size)
        for role in frozenset(roles) & {SCALES, BIASES}:
            part = roles[role]
            if part.shape != shape:
                self.say(f"{label}: {ROLES[role]} have shape {part.shape}, wanted {shape}", at)
            if part.dtype not in rule.scales:
                dtype = DTYPES[part.dtype][0]
                self.say(f"{label}: {ROLES[role]} are {dtype}, not a dtype of this mode", at)


# --- The expert index ----------------------------------------------------------------------------


def index_batches(section: Section, file: File) -> Iterator[bytes]:
    """The bytes of EXPT, a batch of whole entries at a time."""
    position = section.entry.offset
    while position < section.end:
        length = min(INDEX_BATCH_BYTES, section.end - position)
        yield file.read(position, length)
        position += length


def index_entries(section: Section, file: File) -> Iterator[tuple[int, ExpertEntry]]:
    """(offset in the file, entry) of each whole entry of EXPT."""
    at = section.entry.offset
    for batch in index_batches(section, file):
        whole = batch[: len(batch) // EXPERT_ENTRY.size * EXPERT_ENTRY.size]
        for fields in EXPERT_ENTRY.iter_unpack(whole):
            yield at, ExpertEntry(*fields)
            at += EXPERT_ENTRY.size


def check_index(shard: Shard, section: Section, file: File) -> None:
    """Read EXPT twice, a batch at a time: once for its checksums, once for its rules."""
    crc32, sha256 = 0, hashlib.sha256()
    for batch in index_batches(section, file):
        crc32 = zlib.crc32(batch, crc32)
        sha256.update(batch)
    judge_section(shard.log, section, crc32, sha256.digest())
    if not section.intact:
        return
    walk = IndexWalk(shard)
    if section.entry.stored_len % EXPERT_ENTRY.size:
        message = f"EXPT has {section.entry.stored_len} bytes, wanted a multiple of 64"
        shard.log("E_INDEX", message, section.entry.offset)
        walk.whole = False
    for at, entry in index_entries(section, file):
        if not walk.step(at, entry):
            break
    walk.finish()


class IndexWalk:
    """Checks the entries of EXPT in order, section 9."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.rule = RuleLog(shard.log)
        self.runs: list[LayerRun] = []
        self.ordered = True
        self.tiled = True
        self.whole = True
        self.count = 0
        self.tree = MerkleTree()
        self.blocks = shard.section(b"BLKS")
        self.position = self.blocks.entry.offset if self.blocks else None

    def step(self, at: int, entry: ExpertEntry) -> bool:
        """Return whether it makes sense to go on."""
        self.tree.add(entry.sha256)
        if entry.layer >= MAX_LAYERS or entry.expert >= MAX_EXPERTS:
            message = f"layer {entry.layer} or expert {entry.expert} is out of range"
            self.rule("numbers in range", "E_INDEX", message, at, entry)
            self.ordered = False
        if entry.flags or entry.reserved:
            message = "flags or reserved field are not zero"
            self.rule("zero fields", "E_INDEX", message, at, entry)
        self.check_order(at, entry)
        self.check_place(at, entry)
        self.count += 1
        if len(self.runs) > MAX_LAYERS:
            self.shard.log("E_INDEX", f"more than {MAX_LAYERS} layers; not looked at beyond", at)
            self.whole = False
        return len(self.runs) <= MAX_LAYERS

    def check_order(self, at: int, entry: ExpertEntry) -> None:
        last = self.runs[-1] if self.runs else None
        if last is None or entry.layer > last.layer:
            self.runs.append(LayerRun(entry.layer, entry.layout, self.count, 0))
            last = self.runs[-1]
        wanted = (last.layer, last.count)
        if (entry.layer, entry.expert) != wanted:
            message = f"an entry for layer {entry.layer} expert {entry.expert}"
            message += f", wanted layer {wanted[0]} expert {wanted[1]}"
            self.rule("order of entries", "E_INDEX", message, at, entry)
            self.ordered = False
        elif entry.layout != last.layout:
            message = f"layout {entry.layout} in a layer of layout {last.layout}"
            self.rule("one layout a layer", "E_INDEX", message, at, entry)
            self.ordered = False
        last.count += 1

    def check_place(self, at: int, entry: ExpertEntry) -> None:
        length = entry.length
        layouts = self.shard.layouts
        if layouts is not None:
            if entry.layout >= len(layouts):
                message = f"layout {entry.layout} is not in LAYT, which has {len(layouts)}"
                self.rule("layouts exist", "E_INDEX", message, at, entry)
                self.tiled = False
            elif layouts[entry.layout].measured:
                length = layouts[entry.layout].block_len
        if entry.length != length:
            message = f"length {entry.length}, the layout's block_len is {length}"
            self.rule("lengths of blocks", "E_INDEX_EXTENT", message, at + 16, entry)
            self.tiled = False
        if self.position is None:
            return
        if entry.offset != self.position:
            message = f"block at {entry.offset:#x}, wanted {self.position:#x}"
            self.rule("places of blocks", "E_INDEX_EXTENT", message, at + 8, entry)
            self.tiled = False
        self.position += length

    def finish(self) -> None:
        shard, blocks = self.shard, self.blocks
        self.rule.close()
        if self.ordered and self.whole:
            shard.layers = self.runs
        if blocks is None or not self.whole:
            return
        if self.tiled and blocks.placed and self.position != blocks.end:
            message = f"the last block ends at {self.position:#x}, BLKS at {blocks.end:#x}"
            shard.log("E_INDEX_EXTENT", message)
        root = self.tree.root()
        if root != blocks.entry.sha256 and shard.table_intact:
            message = f"blocks' root {blocks.entry.sha256.hex()}, the index gives {root.hex()}"
            shard.log("E_BLOCKS_ROOT", message, blocks.at + 40)


# --- Dense weights -------------------------------------------------------------------------------


def read_dense_header(shard: Shard, section: Section, file: File) -> None:
    """Check the safetensors header of DENS, section 10."""
    log, entry = shard.log, section.entry
    if entry.stored_len < 8:
        log("E_DENSE", f"DENS has {entry.stored_len} bytes, wanted at least 8", entry.offset)
        return
    (length,) = struct.unpack("<Q", file.read(entry.offset, 8))
    if length > MAX_JSON_BYTES:
        log("E_LIMIT", f"a header of {length} bytes, wanted at most {MAX_JSON_BYTES}", entry.offset)
        return
    if length > entry.stored_len - 8:
        log("E_DENSE", f"a header of {length} bytes leaves DENS", entry.offset)
        return
    data = file.read(entry.offset, 8 + length)
    if not check_dense_pin(shard, data, entry.offset):
        return
    text = data[8:]
    if not text.startswith(b"{"):
        log("E_DENSE", f"the header begins with {shown(text[:1])}, wanted {{", entry.offset + 8)
    value = parse_json(text, log, entry.offset + 8, canonical=False)
    if isinstance(value, dict):
        space = entry.stored_len - 8 - length
        reader = TensorTable(log, entry.offset + 8 + length, space)
        shard.dense = reader.run(value, entry.offset)


def check_dense_pin(shard: Shard, data: bytes, offset: int) -> bool:
    """Return whether the header is the one META pins; True when META does not say."""
    pin = shard.meta.get("dense_header") if shard.meta else None
    if not isinstance(pin, dict) or not {"size", "sha256"} <= pin.keys():
        return True
    seen = hashlib.sha256(data).hexdigest()
    if pin["size"] == len(data) and pin["sha256"] == seen:
        return True
    message = f"header of {len(data)} bytes with sha256 {seen}"
    message += f", META pins {shown(pin['size'])} bytes with {shown(pin['sha256'])}"
    shard.log("E_DENSE_SHA256", message, offset)
    return False


class TensorTable:
    """Checks the tensors of a safetensors header; `base` and `space` are place and size of data."""

    def __init__(self, log: Log, base: int, space: int) -> None:
        self.log = log
        self.base = base
        self.space = space
        self.sound = True

    def say(self, code: str, message: str, offset: int) -> None:
        self.sound = False
        self.log(code, message, offset)

    def run(self, header: dict[str, Any], offset: int) -> dict[str, DenseTensor]:
        """Return the tensors that could be understood; `offset` is for findings."""
        tensors = {}
        for name, value in header.items():
            if name == "__metadata__":
                strings = isinstance(value, dict) and all(type(v) is str for v in value.values())
                if not strings:
                    self.say("E_DENSE", "__metadata__ is not an object of strings", offset)
            else:
                tensor = self.tensor(name, value, offset)
                if tensor is not None:
                    tensors[name] = tensor
        if self.sound:
            self.check_tiling(tensors, offset)
        return tensors

    def tensor(self, name: str, value: object, offset: int) -> DenseTensor | None:
        label = f"tensor {shown(name)}"
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            message = f"{label} is not an object of just dtype, shape and data_offsets"
            self.say("E_DENSE", message, offset)
            return None
        dtype, shape = value.get("dtype"), value.get("shape")
        length: int | None = None
        extent = value.get("data_offsets")
        if not isinstance(dtype, str):
            self.say("E_DENSE", f"{label}: dtype is {shown(dtype)}, wanted a string", offset)
            return None
        sound = True

        def wrong(code: str, what: str) -> None:
            nonlocal sound
            sound = False
            self.say(code, f"{label}: {what}", offset)

        if dtype not in DENSE_BITS:
            wrong("E_DTYPE", f"dtype {shown(dtype)} is not known")
        if not isinstance(shape, list) or not all(is_int(size) for size in shape):
            wrong("E_DENSE", f"shape is {shown(shape)}")
        elif len(shape) > MAX_DIMENSIONS:
            wrong("E_DENSE", f"{len(shape)} dimensions, wanted at most {MAX_DIMENSIONS}")
        elif math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
            wrong("E_DENSE", f"shape {shown(shape)} has too many elements")
        elif dtype in DENSE_BITS:
            length = self.length_of(label, dtype, shape, offset)
        begin, end = extent if isinstance(extent, list) and len(extent) == 2 else (None, None)
        if not (is_int(begin) and is_int(end) and begin <= end <= self.space):
            wrong("E_DENSE", f"data_offsets are {shown(extent)} in {self.space} bytes")
            return None
        if not sound or not isinstance(shape, list):
            return None
        if length is not None and length != end - begin:
            message = f"{label}: {end - begin} bytes, {dtype} {shown(shape)} wants {length}"
            self.say("E_DENSE", message, offset)
        return DenseTensor(dtype, tuple(shape), self.base + begin, self.base + end)

    def length_of(self, label: str, dtype: str, shape: list[int], offset: int) -> int | None:
        """Return the bytes of a tensor, or None after saying that they are not whole."""
        bits = DENSE_BITS[dtype] * math.prod(shape)
        if bits % 8:
            self.say("E_DTYPE", f"{label}: {bits} bits are not whole bytes", offset)
            return None
        return bits // 8

    def check_tiling(self, tensors: dict[str, DenseTensor], offset: int) -> None:
        position = self.base
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
            if tensor.begin != position:
                message = f"tensor {shown(name)} begins at {tensor.begin - self.base}"
                message += f" of the data, wanted {position - self.base}"
                self.say("E_DENSE", message, offset)
            position = max(position, tensor.end)
        if position != self.base + self.space:
            message = f"tensors end at {position - self.base} of {self.space} bytes of data"
            self.say("E_DENSE", message, offset)


# --- The set -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileRecord:
    name: str
    size: int
    digest: str
    """shard_root of a shard, sha256 of another file."""


@dataclass
class Manifest:
    """What could be read from kexp.json."""

    set_root: str | None
    shards: list[FileRecord]
    files: list[FileRecord]


def read_manifest(folder: Path, log: Log) -> Manifest | None:
    try:
        with File(folder / "kexp.json") as file:
            if file.size > MAX_JSON_BYTES:
                log("E_LIMIT", f"{file.size} bytes, wanted at most {MAX_JSON_BYTES}")
                return None
            data = file.read(0, file.size)
    except OSError as error:
        log.io_error(error)
        return None
    log.report.files_checked += 1
    log.report.add_bytes(len(data))
    value = parse_json(data, log, 0, canonical=True)
    if value is NO_VALUE:
        return None
    if not isinstance(value, dict):
        log("E_MANIFEST", "is not an object")
        return None
    return ManifestReader(log).run(value)


class ManifestReader:
    """Checks kexp.json, section 3."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def say(self, message: str) -> None:
        self.log("E_MANIFEST", message)

    def run(self, value: dict[str, Any]) -> Manifest | None:
        if "format" in value and value["format"] != "kexp":
            self.say(f"format is {shown(value['format'])}, wanted 'kexp'")
        version = value.get("version")
        if type(version) is int and version != VERSION_MAJOR:
            if "format" not in value:
                self.say("key 'format' is missing")
            self.log("E_VERSION", f"version is {version}, wanted {VERSION_MAJOR}")
            return None
        for key in sorted(value.keys() ^ {"format", "version", "set_root", "shards", "files"}):
            self.say(f"key {shown(key)} is {'unknown' if key in value else 'missing'}")
        if "version" in value and type(version) is not int:
            self.say(f"version is {shown(version)}, wanted {VERSION_MAJOR}")
        root = value.get("set_root")
        if "set_root" in value and not is_digest(root):
            self.say(f"set_root is {shown(root)}, wanted 64 hexadecimal digits")
            root = None
        shards = self.records("shards", "shard_root", value)
        self.check_shard_names(shards, value)
        files = self.records("files", "sha256", value)
        self.check_file_names(files)
        return Manifest(root, shards, files)

    def records(self, key: str, digest: str, value: dict[str, Any]) -> list[FileRecord]:
        if key not in value:
            return []
        items = value[key]
        if not isinstance(items, list):
            self.say(f"{key} is not a list")
            return []
        found = []
        for index, item in enumerate(items):
            record = self.record(f"{key}[{index}]", digest, item)
            if record:
                found.append(record)
        return found

    def record(self, label: str, digest: str, item: object) -> FileRecord | None:
        if not isinstance(item, dict) or item.keys() != {"name", "size", digest}:
            self.say(f"{label} is not an object of just name, size and {digest}")
            return None
        name, size = item["name"], item["size"]
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
            self.say(f"{label}: name {shown(name)} is not a plain file name")
        elif not is_int(size):
            self.say(f"{label}: size is {shown(size)}")
        elif not is_digest(item[digest]):
            self.say(f"{label}: {digest} is {shown(item[digest])}, wanted 64 hexadecimal digits")
        else:
            return FileRecord(name, size, item[digest])
        return None

    def check_shard_names(self, shards: list[FileRecord], value: dict[str, Any]) -> None:
        listed = value.get("shards")
        if not isinstance(listed, list):
            return
        if not 1 <= len(listed) <= MAX_SHARDS:
            self.say(f"{len(listed)} shards, wanted 1..{MAX_SHARDS}")
            shards.clear()
        if len(shards) == len(listed):
            for index, record in enumerate(shards):
                wanted = shard_file_name(index, len(shards))
                if record.name != wanted:
                    self.say(f"shards[{index}] is named {record.name}, wanted {wanted}")

    def check_file_names(self, files: list[FileRecord]) -> None:
        before = ""
        for record in files:
            if record.name <= before:
                self.say(f"files: {record.name} after {before}, wanted ascending")
            before = record.name
            if record.name in NEVER_LISTED or record.name.endswith((".kexp", ".safetensors")):
                self.say(f"files: {record.name} may not be listed")


@dataclass
class KexpSet:
    folder: Path
    report: Report
    manifest: Manifest | None
    shards: list[Shard]
    complete: bool
    """All shards of the set were given and found."""

    @property
    def first(self) -> Shard | None:
        """The shard that has META and DENS."""
        return next((s for s in self.shards if s.header and s.header.shard_no == 0), None)

    def log(self, name: str) -> Log:
        return Log(self.report, name)


def open_folder(folder: Path, report: Report) -> KexpSet:
    log = Log(report, "kexp.json")
    manifest = read_manifest(folder, log)
    beside = [n for n in os.listdir(folder) if n.startswith("model") and n.endswith(".kexp")]
    if manifest is None or not manifest.shards:
        names = sorted(name for name in beside if SHARD_NAME.fullmatch(name))
    else:
        names = [record.name for record in manifest.shards]
        for name in sorted(set(beside) - set(names)):
            Log(report, shown(name)[1:-1])("E_SHARD_EXTRA", "is not listed in kexp.json")
    names = list(dict.fromkeys(names))[:MAX_SHARDS]
    shards = [Shard(folder / name, Log(report, name)) for name in names]
    records = {record.name: record for record in manifest.shards} if manifest else {}
    present = [shard for shard in shards if check_presence(shard, records.get(shard.path.name))]
    return KexpSet(folder, report, manifest, present, complete=len(present) == len(names))


def check_presence(shard: Shard, record: FileRecord | None) -> bool:
    try:
        with File(shard.path) as file:
            check_framing(shard, file)
    except OSError as error:
        shard.log.io_error(error)
        return False
    shard.log.report.files_checked += 1
    # A size that the superblock contradicts as well was reported with it.
    reported = (shard.size, shard.header.file_size if shard.header else None)
    if record is not None and record.size not in reported and shard.size >= HEADER_SIZE:
        shard.log("E_FILE_SIZE", f"{shard.size} bytes, kexp.json says {record.size}")
    if record is not None and shard.header is not None and shard.header_intact:
        root = shard.header.shard_root.hex()
        if root != record.digest:
            shard.log("E_SHARD_ROOT", f"shard root {root}, kexp.json says {record.digest}", 104)
    return True


def check_files(kexp: KexpSet) -> list[FileRecord]:
    """Return the listed files that are there in their size."""
    present = []
    for record in kexp.manifest.files if kexp.manifest else ():
        log = kexp.log(record.name)
        try:
            with File(kexp.folder / record.name) as file:
                size = file.size
        except OSError as error:
            log.io_error(error)
            continue
        kexp.report.files_checked += 1
        if size == record.size:
            present.append(record)
        else:
            log("E_FILE_SIZE", f"{size} bytes, kexp.json says {record.size}")
    return present


def check_set_root(kexp: KexpSet) -> None:
    """kexp.json and all superblocks have one set root, which follows from the shard roots."""
    headers = [(s.log, s.header) for s in kexp.shards if s.header and s.header_intact]
    held = [(log, header.set_root.hex()) for log, header in headers]
    if kexp.manifest and kexp.manifest.set_root:
        held.append((kexp.log("kexp.json"), kexp.manifest.set_root))
    if not held:
        return
    counts = Counter(root for _, root in held)
    usual = counts.most_common(1)[0][0]
    headers.sort(key=lambda item: item[1].shard_no)
    complete = kexp.complete and 0 < len(headers) == len(kexp.shards)
    complete &= all(shard.root_follows for shard in kexp.shards)
    complete &= [header.shard_no for _, header in headers] == list(range(len(headers)))
    complete &= all(header.shard_count == len(headers) for _, header in headers)
    if complete:
        computed = MerkleTree(header.shard_root for _, header in headers).root().hex()
        if computed in counts:
            usual = computed
        elif len(counts) == 1:
            message = f"set root {usual}, the shard roots give {computed}"
            held[0][0]("E_SET_ROOT", message, 72 if headers else None)
    for log, root in held:
        if root != usual:
            offset = None if log.file == "kexp.json" else 72
            log("E_SET_ROOT", f"set root {root}, the rest of the set has {usual}", offset)


# --- Semantics -----------------------------------------------------------------------------------


class MetaReader:
    """Checks META, section 7.2."""

    def __init__(self, log: Log, offset: int | None, num_layouts: int | None) -> None:
        self.log = log
        self.offset = offset
        self.num_layouts = num_layouts

    def say(self, message: str) -> None:
        self.log("E_META", message, self.offset)

    def run(self, meta: dict[str, Any]) -> None:
        for key in meta:
            if not META_KEY.fullmatch(key):
                self.say(f"key {shown(key)} is not of [a-z0-9_.-]+")
        self.fields(meta)
        if isinstance(meta.get("source"), dict):
            self.check_source(meta["source"])
        if isinstance(meta.get("dense_header"), dict):
            self.check_pin("dense_header", meta["dense_header"])
        if isinstance(meta.get("tensors"), dict):
            for name, value in meta["tensors"].items():
                if not isinstance(value, list) or not all(isinstance(n, str) for n in value):
                    self.say(f"tensors: {shown(name)} is not a list of names")
        if isinstance(meta.get("layers"), list):
            self.check_layers(meta["layers"], meta.get("top_k"))

    def fields(self, meta: dict[str, Any]) -> None:
        for key, kinds, wanted in (
            ("architecture", (str,), "a string"),
            ("activation", (str,), "a string"),
            ("hidden_size", (int,), "an integer"),
            ("top_k", (int,), "an integer"),
            ("layers", (list,), "a list"),
            ("quantization", (dict, type(None)), "an object or null"),
            ("source", (dict,), "an object"),
            ("dense_header", (dict,), "an object"),
        ):
            if key not in meta:
                self.say(f"key {key} is missing")
            elif key == "hidden_size" and type(meta[key]) is int and meta[key] < 1:
                self.say(f"hidden_size is {meta[key]}, wanted at least 1")
            elif type(meta[key]) not in kinds:
                self.say(f"{key} is {shown(meta[key])}, wanted {wanted}")
        for key in ("tensors", "counts"):
            if key in meta and not isinstance(meta[key], dict):
                self.say(f"{key} is {shown(meta[key])}, wanted an object")

    def check_source(self, source: dict[str, Any]) -> None:
        for key in ("repository", "revision"):
            if not isinstance(source.get(key), str | None):
                self.say(f"source: {key} is {shown(source[key])}, wanted a string or null")
        files = source.get("files", {})
        if not isinstance(files, dict):
            self.say(f"source: files is {shown(files)}, wanted an object")
            return
        for name, record in files.items():
            label = f"source: file {shown(name)}"
            if not isinstance(record, dict) or not is_int(record.get("size")):
                self.say(f"{label} is {shown(record)}, wanted an object with a size")
            elif "sha256" in record and not is_digest(record["sha256"]):
                self.say(f"{label}: sha256 is {shown(record['sha256'])}")

    def check_pin(self, label: str, record: dict[str, Any]) -> None:
        if record.keys() != {"sha256", "size"}:
            self.say(f"{label} is {shown(record)}, wanted just sha256 and size")
        elif not is_digest(record["sha256"]) or not is_int(record["size"]):
            self.say(f"{label} is {shown(record)}, wanted 64 hexadecimal digits and a size")

    def check_layers(self, layers: list[Any], top_k: object) -> None:
        if not layers:
            self.say("layers is empty")
        before = -1
        for index, layer in enumerate(layers):
            label = f"layers[{index}]"
            if not isinstance(layer, dict):
                self.say(f"{label} is not an object")
                continue
            number = layer.get("layer")
            self.check_layer(label, layer)
            if type(number) is int:
                if number <= before:
                    self.say(f"{label}: layer {number} after {before}, wanted ascending")
                before = number
        if type(top_k) is int:
            counts = [c for e in layers if isinstance(e, dict) if is_int(c := e.get("num_experts"))]
            fewest = min(counts, default=MAX_EXPERTS)
            if not 1 <= top_k <= fewest:
                self.say(f"top_k is {top_k}, wanted 1..{fewest}")

    def check_layer(self, label: str, layer: dict[str, Any]) -> None:
        num_layouts = MAX_LAYOUTS if self.num_layouts is None else self.num_layouts
        for key, low, high in (
            ("layer", 0, MAX_LAYERS - 1),
            ("num_experts", 1, MAX_EXPERTS),
            ("layout", 0, num_layouts - 1),
        ):
            if not is_int(layer.get(key), low, high):
                self.say(f"{label}: {key} is {shown(layer.get(key))}, wanted {low}..{high}")
        if not isinstance(layer.get("prefix"), str):
            self.say(f"{label}: prefix is {shown(layer.get('prefix'))}, wanted a string")


def check_semantics(kexp: KexpSet) -> None:
    first = kexp.first
    if first and first.meta is not None:
        section = first.section(b"META")
        offset = text_offset(section) if section else None
        num_layouts = None if first.layouts is None else len(first.layouts)
        MetaReader(first.log, offset, num_layouts).run(first.meta)
    check_same_layouts(kexp)
    check_layer_order(kexp)
    if first and first.meta is not None:
        compare_layers(kexp, first, first.meta)
    check_config(kexp)


def check_same_layouts(kexp: KexpSet) -> None:
    known = [s for s in kexp.shards if s.layout_digest is not None]
    if not known:
        return
    usual = Counter(s.layout_digest for s in known).most_common(1)[0][0]
    for shard in known:
        if shard.layout_digest != usual:
            section = shard.section(b"LAYT")
            offset = section.entry.offset if section else None
            shard.log("E_LAYOUT", "LAYT differs from that of the other shards", offset)


def check_layer_order(kexp: KexpSet) -> None:
    before, owner = -1, ""
    for shard in kexp.shards:
        if not shard.layers:
            continue
        first = shard.layers[0].layer
        if first <= before:
            message = f"begins with layer {first}, but {owner} ends with layer {before}"
            shard.log("E_INDEX", message, layer=first)
        before, owner = shard.layers[-1].layer, shard.path.name


def compare_layers(kexp: KexpSet, first: Shard, meta: dict[str, Any]) -> None:
    """META's layer list says exactly what the indexes of all shards say."""
    listed: dict[int, dict[str, Any]] = {}
    items = meta.get("layers")
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict) or type(item.get("layer")) is not int:
            return  # reported
        listed[item["layer"]] = item
    found: set[int] = set()
    for shard in kexp.shards:
        for run in shard.layers or ():
            found.add(run.layer)
            item = listed.get(run.layer)
            if item is None:
                first.log(
                    "E_META", f"layer is in {shard.path.name} but not in META", layer=run.layer
                )
                continue
            seen = (item.get("num_experts"), item.get("layout"))
            if seen != (run.count, run.layout):
                message = f"META has num_experts, layout {shown(seen)}"
                message += f", the index {shown((run.count, run.layout))}"
                first.log("E_META", message, layer=run.layer)
    if not all_indexes_known(kexp, first):
        return
    for layer in listed.keys() - found:
        first.log("E_META", "layer is in META but in no index", layer=layer)


def all_indexes_known(kexp: KexpSet, first: Shard) -> bool:
    others = kexp.shards if first.is_only else [s for s in kexp.shards if s is not first]
    return kexp.complete and all(shard.layers is not None for shard in others)


def check_config(kexp: KexpSet) -> None:
    records = kexp.manifest.files if kexp.manifest else []
    if not any(record.name == "config.json" for record in records):
        return
    log = kexp.log("config.json")
    try:
        with File(kexp.folder / "config.json") as file:
            if file.size > MAX_JSON_BYTES:
                log("E_LIMIT", f"{file.size} bytes, wanted at most {MAX_JSON_BYTES}")
                return
            text = file.read(0, file.size).decode("utf-8")
        scanner = JsonScanner(text, lambda *_: None, canonical=False)
        scanner.max_depth, scanner.token = MAX_CONFIG_DEPTH, PYTHON_JSON_TOKEN
        scanner.run()
    except OSError:
        return  # reported where files were listed
    except (UnicodeDecodeError, JsonStop) as error:
        log("E_CONFIG", f"not JSON in UTF-8: {error}")
    else:
        if not text.lstrip().startswith("{"):
            log("E_CONFIG", "is not a JSON object")


# --- Integrity -----------------------------------------------------------------------------------


class Segment:
    """Bytes start..stop of a file, of which start..hashed_end have a crc32 and a sha256.

    gaps: (begin, end) offsets in the file that must be zero. Fed from front to back; `judge` is
    called at the end.
    """

    def __init__(
        self,
        start: int,
        hashed_end: int,
        stop: int,
        judge: Callable[[Segment], None],
        gaps: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.start, self.hashed_end, self.stop = start, hashed_end, stop
        self.judge = judge
        self.gaps = gaps
        self.crc32 = 0
        self.sha256 = hashlib.sha256()
        self.nonzero: list[int] = []

    def feed(self, data: memoryview, at: int) -> None:
        hashed = max(0, min(self.hashed_end - at, len(data)))
        for begin in range(0, hashed, CACHED_BYTES):
            piece = data[begin : min(begin + CACHED_BYTES, hashed)]
            self.sha256.update(piece)
            self.crc32 = zlib.crc32(piece, self.crc32)
        for begin, end in self.gaps:
            first, last = max(begin, at) - at, min(end - at, len(data))
            if first < last:
                gap = bytes(data[first:last])
                rest = gap.lstrip(b"\0")
                if rest:
                    self.nonzero.append(at + last - len(rest))
        if at + len(data) >= self.stop:
            self.judge(self)


def section_segment(shard: Shard, section: Section) -> Segment:
    entry = section.entry

    def judge(segment: Segment) -> None:
        raw_known = entry.codec == CODEC_RAW
        sha256 = segment.sha256.digest() if raw_known else entry.sha256
        judge_section(shard.log, section, segment.crc32, sha256)

    return Segment(entry.offset, section.end, section.end, judge)


def file_segment(log: Log, record: FileRecord, _: File) -> Iterator[Segment]:
    """A file beside the shards, as one segment."""

    def judge(segment: Segment) -> None:
        sha256 = segment.sha256.hexdigest()
        if sha256 != record.digest:
            log("E_FILE_SHA256", f"sha256 {sha256}, kexp.json says {record.digest}")

    if record.size:
        yield Segment(0, record.size, record.size, judge)
    elif record.digest != hashlib.sha256().hexdigest():
        log("E_FILE_SHA256", f"is empty, kexp.json says sha256 {record.digest}")


def block_segment(shard: Shard, entry: ExpertEntry, layout: Layout, *, salvage: bool) -> Segment:
    """salvage: the index is damaged, so a block is called damaged only if both checksums say so."""
    payload_end = entry.offset + layout.payload_len
    stop = entry.offset + layout.block_len

    def judge(segment: Segment) -> None:
        crc32, sha256 = segment.crc32, segment.sha256.digest()
        crc32_agrees, sha256_agrees = crc32 == entry.crc32, sha256 == entry.sha256
        place = (entry.offset, entry.layer, entry.expert)
        if not crc32_agrees and not (salvage and sha256_agrees):
            message = f"crc32 {crc32:08x} != {entry.crc32:08x}"
            if sha256_agrees:
                message += "; sha256 agrees, so the index is wrong"
            shard.log("E_BLOCK_CRC", message, *place)
        elif not sha256_agrees and not salvage:
            message = f"sha256 {sha256.hex()} != {entry.sha256.hex()}"
            shard.log("E_BLOCK_SHA256", message, *place)
        for at in segment.nonzero:
            # Between the parts of a damaged payload anything may stand.
            if at >= payload_end or (crc32_agrees and sha256_agrees):
                message = "a byte that no part covers is not zero"
                shard.log("E_PADDING", message, at, entry.layer, entry.expert)

    gaps = block_gaps(layout, entry.offset) if layout.sound else ()
    return Segment(entry.offset, payload_end, stop, judge, gaps)


def block_gaps(layout: Layout, offset: int) -> list[tuple[int, int]]:
    ends = [0] + [part.offset + part.length for part in layout.parts]
    starts = [part.offset for part in layout.parts] + [layout.block_len]
    pairs = zip(ends, starts, strict=True)
    return [(offset + end, offset + start) for end, start in pairs if end < start]


def shard_segments(shard: Shard, index_file: File) -> Iterator[Segment]:
    """What has checksums in a shard and was not read before, in the order of the file."""
    end = 0
    for section in sorted(shard.sections, key=lambda s: s.entry.offset):
        if not section.readable or section.intact is not None or section.entry.offset < end:
            continue
        if section.entry.tag == b"BLKS":
            yield from block_segments(shard, section, index_file)
        else:
            yield section_segment(shard, section)
        end = section.end


def block_segments(shard: Shard, blocks: Section, index_file: File) -> Iterator[Segment]:
    index, layouts = shard.section(b"EXPT"), shard.layouts
    if index is None or layouts is None:
        shard.log.unchecked("blocks: there is no index or no layout to check them by")
        return
    position, lost = blocks.entry.offset, 0
    layer, layer_layout = -1, 0
    for _, entry in index_entries(index, index_file):
        if entry.layer != layer:
            layer, layer_layout = entry.layer, entry.layout
        if entry.layout >= len(layouts) or entry.layout != layer_layout:
            continue  # reported with the index
        layout = layouts[entry.layout]
        inside = (
            position <= entry.offset <= blocks.end and entry.length <= blocks.end - entry.offset
        )
        if not inside or not layout.measured or entry.length != layout.block_len:
            continue  # likewise
        if entry.length > shard.size - entry.offset:
            lost += 1
            continue
        yield block_segment(shard, entry, layout, salvage=not index.intact)
        position = entry.offset + entry.length
    if lost:
        shard.log.unchecked(f"{lost} experts lie beyond the end of the file")


@dataclass
class Stream:
    """A file to be read from front to back."""

    path: Path
    log: Log
    size: int
    segments: Callable[[File], Iterator[Segment]]


class Stretch(NamedTuple):
    """A part of a file that one thread reads: segments, and what lies before them."""

    begin: int
    end: int
    segments: Sequence[Segment]


class Stretches:
    """Cuts a file into stretches that leave nothing out, and deals them to threads in file order.

    A segment is never cut: the dense weights, gigabytes long, go as fast as one core hashes, while
    the other threads are at the blocks behind them.
    """

    def __init__(self, segments: Iterator[Segment], size: int) -> None:
        self._segments = segments
        self._size = size
        self._begin = 0
        self._lock = threading.Lock()
        self.stopped = False

    def take(self) -> Stretch | None:
        with self._lock:
            if self.stopped or self._begin >= self._size:
                return None
            begin, end, taken = self._begin, self._begin, list[Segment]()
            while end - begin < STRETCH_BYTES:
                segment = next(self._segments, None)
                if segment is None:
                    end = min(self._size, begin + STRETCH_BYTES)
                    break
                taken.append(segment)
                end = segment.stop
            self._begin = end
            return Stretch(begin, end, taken)


class Sweep:
    """Reads files one after the other, front to back, in stretches.

    The thread that has read some bytes also hashes them, both checksums in turn: hashlib, zlib and
    the system let go of the interpreter lock, nobody waits for somebody else's turn, and the second
    checksum finds the bytes in the core's cache. Threads that only read, feeding others that only
    hash, reached three quarters of this.
    """

    def __init__(self, report: Report, progress: Progress) -> None:
        self.report = report
        self.progress = progress
        # Enough that some wait for the disk while every processor hashes: with two processors four
        # threads reached 0.85 of what the disk gave, eight 0.97.
        self.num_threads = 2 * min(8, os.cpu_count() or 1) + 4
        # Whole pages, as O_DIRECT wants them.
        self.buffers = [memoryview(mmap.mmap(-1, READ_BYTES)) for _ in range(self.num_threads)]

    def run(self, streams: Sequence[Stream]) -> None:
        with ThreadPoolExecutor(self.num_threads) as threads:
            for stream in streams:
                self.sweep(stream, threads)

    def sweep(self, stream: Stream, threads: ThreadPoolExecutor) -> None:
        try:
            with UncachedFile(stream.path) as file, File(stream.path) as index_file:
                if file.size != stream.size:
                    raise FileChanged
                stretches = Stretches(stream.segments(index_file), file.size)
                work = partial(self.check_stretches, file, stretches)
                futures = [threads.submit(work, buffer) for buffer in self.buffers]
                try:
                    for future in futures:
                        future.result()
                finally:
                    # The buffers and the file are in use until then, after an error too.
                    stretches.stopped = True
                    wait(futures)
                file.check_unchanged()
        except OSError as error:
            stream.log.io_error(error)

    def check_stretches(self, file: UncachedFile, stretches: Stretches, buffer: memoryview) -> None:
        try:
            while (stretch := stretches.take()) is not None:
                for num_bytes in check_stretch(file, stretch, buffer):
                    self.report.add_bytes(num_bytes)
                    self.progress.add(num_bytes)
                    if stretches.stopped:
                        return
        except BaseException:
            stretches.stopped = True
            raise


def check_stretch(file: UncachedFile, stretch: Stretch, buffer: memoryview) -> Iterator[int]:
    """Read a stretch and feed its segments; yields the number of bytes of each step."""
    at, segments = stretch.begin, deque(stretch.segments)
    while at < stretch.end:
        # From the page before, since sections need not begin at one.
        page = at - at % PAGE_BYTES
        wanted = min(stretch.end - page, len(buffer))
        file.read_into(page, buffer[: wanted + -wanted % PAGE_BYTES])
        end = page + wanted
        while segments and (segments[0].start < end or segments[0].stop == end):
            segment = segments[0]
            begin, stop = max(segment.start, at), min(segment.stop, end)
            segment.feed(buffer[begin - page : stop - page], begin)
            if segment.stop > end:
                break
            segments.popleft()
        yield end - at
        at = end


def check_integrity(kexp: KexpSet, files: Sequence[FileRecord], progress_stream: Any) -> None:
    """Read every byte once."""
    streams = []
    for shard in kexp.shards:
        check_compressed_ancillary(shard)
        segments = partial(shard_segments, shard)
        streams.append(Stream(shard.path, shard.log, shard.size, segments))
    for record in files:
        log = kexp.log(record.name)
        segments = partial(file_segment, log, record)
        streams.append(Stream(kexp.folder / record.name, log, record.size, segments))
    progress = Progress(sum(stream.size for stream in streams), progress_stream)
    try:
        Sweep(kexp.report, progress).run(streams)
    finally:
        progress.close()


def check_compressed_ancillary(shard: Shard) -> None:
    """Decode them one by one; they are small, and their sha256 is of the raw bytes."""
    for section in shard.sections:
        entry = section.entry
        if entry.codec == CODEC_ZSTD and not section.critical and section.readable:
            try:
                with File(shard.path) as file:
                    load_section(shard, section, file)
            except OSError as error:
                shard.log.io_error(error, entry.offset)


class Progress:
    """A line on a terminal, redrawn ten times a second; nothing elsewhere."""

    def __init__(self, total_bytes: int, stream: Any) -> None:
        self._total = total_bytes
        self._stream: Any = stream if stream is not None and stream.isatty() else None
        self._done = 0
        self._begin = self._drawn = time.monotonic()
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        if self._stream is None:
            return
        with self._lock:
            self._done += num_bytes
            now = time.monotonic()
            if now - self._drawn >= 0.1:
                self._drawn = now
                self._draw(now - self._begin)

    def _draw(self, seconds: float) -> None:
        speed = self._done / max(seconds, 1e-3)
        left = (self._total - self._done) / max(speed, 1.0)
        filled = 30 * self._done // max(self._total, 1)
        line = f"{'#' * filled:.<30} {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB"
        print(
            f"\r{line}  {speed / 1e9:.2f} GB/s  {left:.0f} s left \x1b[K", end="", file=self._stream
        )
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


# --- Against the source --------------------------------------------------------------------------


class Stopped(Exception):
    """Another thread was interrupted."""


class SourceTensor(NamedTuple):
    """A tensor of the checkpoint: begin and end are offsets in its file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SourceLog(Log):
    """Whatever is wrong with the source has one code: the specification is not about it."""

    def __call__(
        self,
        code: str,
        message: str,
        offset: int | None = None,
        layer: int | None = None,
        expert: int | None = None,
    ) -> None:
        code = code if code in ("E_IO", "E_FILE_MISSING") else "AGAINST_SOURCE"
        super().__call__(code, message, offset, layer, expert)


def source_tensors(kexp: KexpSet, source: Path) -> tuple[dict[str, SourceTensor], bool]:
    """Read the headers of the source's safetensors files: those that META names, else all.

    Also returns whether all of them could be read.
    """
    meta = kexp.first.meta if kexp.first and kexp.first.meta else {}
    record = meta.get("source")
    files = record.get("files") if isinstance(record, dict) else None
    names = sorted(files) if isinstance(files, dict) else []
    names = [name for name in names if FILE_NAME.fullmatch(name) and name.endswith(".safetensors")]
    if not names:
        names = sorted(name for name in os.listdir(source) if name.endswith(".safetensors"))
    tensors: dict[str, SourceTensor] = {}
    before = kexp.report.num_findings
    for name in names:
        log = SourceLog(kexp.report, f"source {shown(name)[1:-1]}")
        try:
            tensors.update(read_source_header(source / name, log))
        except OSError as error:
            log.io_error(error)
    if not names:
        SourceLog(kexp.report, "source")("AGAINST_SOURCE", "has no .safetensors files")
    return tensors, kexp.report.num_findings == before


def read_source_header(path: Path, log: Log) -> dict[str, SourceTensor]:
    with File(path) as file:
        if file.size < 8:
            log("AGAINST_SOURCE", f"{file.size} bytes: not a safetensors file")
            return {}
        (length,) = struct.unpack("<Q", file.read(0, 8))
        if length > min(file.size - 8, 100_000_000):
            log("AGAINST_SOURCE", f"a header of {length} bytes in a file of {file.size}")
            return {}
        header = json_of_source(file.read(8, length), log)
    table = TensorTable(log, 8 + length, file.size - 8 - length).run(header, 8)
    return {name: SourceTensor(path, *tensor) for name, tensor in table.items()}


def json_of_source(data: bytes, log: Log) -> dict[str, Any]:
    value = parse_json(data, log, 8, canonical=False)
    if isinstance(value, dict):
        return value
    if value is not NO_VALUE:
        log("AGAINST_SOURCE", "the header is not an object", 8)
    return {}


@dataclass
class Comparison:
    """`count` runs of bytes to compare: from `begin` on in a shard, from the source's on there.

    shard_step: from one run to the next in the shard; in the source they follow one another.
    """

    shard: Shard
    name: str
    begins: list[int]
    length: int
    source: SourceTensor
    layer: int | None = None


class SourceCheck:
    """Compares a set with the checkpoint it was made from."""

    def __init__(self, kexp: KexpSet, source: Path, progress_stream: Any) -> None:
        self.kexp = kexp
        self.folder = source
        self.progress_stream = progress_stream
        self.tensors, self.complete = source_tensors(kexp, source)
        self.seen: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        first = self.kexp.first
        if first is None or first.meta is None or first.dense is None:
            self.kexp.log(self.kexp.folder.name).unchecked("META or DENS cannot be compared")
            return
        units = list(self.dense_comparisons(first))
        for shard in self.kexp.shards:
            units.extend(self.expert_comparisons(shard, first.meta))
        self.check_leftovers(first)
        self.check_files()
        self.compare_all(units)

    def check_leftovers(self, first: Shard) -> None:
        if not all_indexes_known(self.kexp, first):
            first.log.unchecked("which tensors of the source are missing: an index is not known")
            return
        for name in sorted(self.tensors.keys() - self.seen):
            first.log("AGAINST_MISSING", f"tensor {shown(name)} of the source is not in the set")

    def find(
        self, log: Log, name: str, dtype: str, shape: tuple[int, ...], layer: int | None = None
    ) -> SourceTensor | None:
        self.seen.add(name)
        tensor = self.tensors.get(name)
        if tensor is None and not self.complete:
            log.unchecked(f"tensor {shown(name)} against a source that cannot be read")
        elif tensor is None:
            log("AGAINST_MISSING", f"tensor {shown(name)} is not in the source", layer=layer)
        elif (tensor.dtype, tensor.shape) != (dtype, shape):
            message = f"tensor {shown(name)} is {dtype} {shown(shape)}"
            message += f", in the source {tensor.dtype} {shown(tensor.shape)}"
            log("AGAINST_TYPE", message, layer=layer)
        else:
            return tensor
        return None

    def dense_comparisons(self, first: Shard) -> Iterator[Comparison]:
        for name, tensor in (first.dense or {}).items():
            found = self.find(first.log, name, tensor.dtype, tensor.shape)
            if found:
                yield Comparison(first, name, [tensor.begin], tensor.end - tensor.begin, found)

    def expert_comparisons(self, shard: Shard, meta: dict[str, Any]) -> Iterator[Comparison]:
        prefixes = {
            item["layer"]: item["prefix"]
            for item in meta.get("layers", ())
            if isinstance(item, dict) and isinstance(item.get("prefix"), str)
        }
        blocks, layouts = shard.section(b"BLKS"), shard.layouts
        if blocks is None or layouts is None or not shard.layers:
            return
        position = blocks.entry.offset
        for run in shard.layers:
            if run.layout >= len(layouts) or not layouts[run.layout].sound:
                return
            layout = layouts[run.layout]
            starts = range(position, position + run.count * layout.block_len, layout.block_len)
            position = starts.stop
            if run.layer not in prefixes or position > shard.size:
                continue
            for part in layout.parts:
                name = f"{prefixes[run.layer]}.{SOURCE_PROJECTIONS[part.projection]}"
                name = f"{name}.{ROLES[part.role]}"
                dtype = DTYPES[part.dtype][0].upper()
                shape = (run.count, *part.shape)
                found = self.find(shard.log, name, dtype, shape, run.layer)
                if found:
                    begins = [start + part.offset for start in starts]
                    yield Comparison(shard, name, begins, part.length, found, run.layer)

    def check_files(self) -> None:
        """config.json, the tokenizer: files of the source that are in the set byte for byte."""
        for record in self.kexp.manifest.files if self.kexp.manifest else ():
            path = self.folder / record.name
            try:
                with File(path) as file:
                    digest = hashlib.sha256()
                    for begin in range(0, file.size, COMPARE_BYTES):
                        digest.update(file.read(begin, min(COMPARE_BYTES, file.size - begin)))
            except OSError:
                continue
            if digest.hexdigest() != record.digest:
                log = self.kexp.log(record.name)
                log("AGAINST_BYTES", f"sha256 {record.digest}, in the source {digest.hexdigest()}")

    def compare_all(self, units: Sequence[Comparison]) -> None:
        total = sum(unit.length * len(unit.begins) for unit in units)
        progress = Progress(total, self.progress_stream)
        pool = ThreadPoolExecutor(2)
        try:
            for future in [pool.submit(self.compare, unit, progress) for unit in units]:
                future.result()
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            progress.close()

    def compare(self, unit: Comparison, progress: Progress) -> None:
        """Report the first difference of each run."""
        length = unit.length
        buffers = memoryview(bytearray(COMPARE_BYTES)), memoryview(bytearray(COMPARE_BYTES))
        try:
            with File(unit.shard.path) as ours, File(unit.source.path) as theirs:
                for index, begin in enumerate(unit.begins):
                    if self.stop.is_set():
                        raise Stopped
                    their_begin = unit.source.begin + index * length
                    at = first_difference(ours, begin, theirs, their_begin, length, buffers)
                    if at is not None:
                        self.differs(unit, index, begin + at, at)
                    progress.add(length)
        except OSError as error:
            unit.shard.log.io_error(error)

    def differs(self, unit: Comparison, index: int, offset: int, at: int) -> None:
        message = f"tensor {shown(unit.name)} differs from the source at byte {at}"
        expert = None
        if unit.layer is not None:
            expert = index
            message += " of the expert's part"
        unit.shard.log("AGAINST_BYTES", message, offset, unit.layer, expert)


def first_difference(
    ours: File,
    our_begin: int,
    theirs: File,
    their_begin: int,
    length: int,
    buffers: tuple[memoryview, memoryview],
) -> int | None:
    """Return the first byte, counted from the begin, in which two runs differ, or None."""
    for done in range(0, length, COMPARE_BYTES):
        count = min(COMPARE_BYTES, length - done)
        left, right = buffers[0][:count], buffers[1][:count]
        ours.read_into(our_begin + done, left)
        theirs.read_into(their_begin + done, right)
        if bytes(left) != bytes(right):
            pairs = enumerate(zip(left, right, strict=True))
            return done + next(index for index, (a, b) in pairs if a != b)
    return None


# --- The command ---------------------------------------------------------------------------------


def validate(
    path: Path | str,
    *,
    level: str = "integrity",
    against: Path | str | None = None,
    progress_stream: Any = None,
) -> Report:
    """Check a set, or one file of it, and return what was found; damage raises nothing."""
    path = Path(path)
    report = Report(str(path), level, None if against is None else str(against))
    depth = LEVELS.index(level)
    log = Log(report, path.name or str(path))
    try:
        kexp = open_folder(path, report) if path.is_dir() else open_alone(path, report)
        if against is not None and not Path(against).is_dir():
            Log(report, str(against))("E_IO", "is not a folder of safetensors files")
            return report
    except OSError as error:
        log("E_IO", str(error.strerror or error))
        return report
    files = check_files(kexp)
    check_set_root(kexp)
    if depth >= LEVELS.index("structure") or against is not None:
        read_structures(kexp)
    if depth >= LEVELS.index("semantics"):
        check_semantics(kexp)
    if depth >= LEVELS.index("integrity"):
        check_integrity(kexp, files, progress_stream)
    if against is not None:
        SourceCheck(kexp, Path(against), progress_stream).run()
    return report


def open_alone(path: Path, report: Report) -> KexpSet:
    shard = Shard(path, Log(report, path.name))
    with File(path) as file:
        check_framing(shard, file)
    report.files_checked += 1
    report.scope = "file"
    return KexpSet(path.parent, report, None, [shard], complete=shard.is_only)


def read_structures(kexp: KexpSet) -> None:
    """Read the small sections of all shards, and keep of each kind what a sound set has: one."""
    known: dict[bytes, list[Layout]] = {}
    for shard in kexp.shards:
        read_structure(shard)
        if shard is not kexp.first:
            shard.meta = shard.dense = None
        if shard.layouts is not None and shard.layout_digest is not None:
            shard.layouts = known.setdefault(shard.layout_digest, shard.layouts)


def read_structure(shard: Shard) -> None:
    if shard.header is None:
        return
    try:
        with File(shard.path) as file:
            check_structure(shard, file)
    except OSError as error:
        shard.log.io_error(error)


def print_report(report: Report, seconds: float, *, quiet: bool) -> None:
    for finding in report.findings:
        print(finding)
    for file, code, count in report.omitted:
        print(f"{file}: {count} more ({code})")
    for file, message in report.unchecked:
        print(f"{file}: could not be checked: {message}")
    if quiet:
        return
    total = report.num_findings
    found = f": {total} finding{'s' if total > 1 else ''}" if total else ""
    size = f"{report.files_checked} files, {report.bytes_checked / 1e9:.2f} GB"
    found += " in this file by itself" if report.scope == "file" else ""
    print(f"{report.path}: {report.verdict}{found} (level {report.level}, {size}, {seconds:.1f} s)")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="validate_kexp.py",
        description="Validate a .kexp set against its specification.",
        epilog="Exit status: 0 valid, 1 invalid, 2 usage, 3 unreadable, 4 something could not be "
        "checked, 130 interrupted.",
    )
    parser.add_argument("path", help="folder of a set, or one .kexp file")
    parser.add_argument("--level", choices=LEVELS, default="integrity", help="how far to go")
    parser.add_argument("--against", metavar="SOURCE", help="compare with this safetensors folder")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="print findings only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    options = parse_arguments(arguments)
    begin = time.monotonic()
    # What a hostile file put into a message must not stop it from being printed.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        report = validate(
            options.path,
            level=options.level,
            against=options.against,
            progress_stream=None if options.quiet else sys.stderr,
        )
        if options.json:
            print(json.dumps(report.as_dict(), indent=2))
        else:
            print_report(report, time.monotonic() - begin, quiet=options.quiet)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return report.exit_code
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
