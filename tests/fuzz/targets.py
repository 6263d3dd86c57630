"""What reads bytes from strangers, each as a function from bytes to what went wrong.

Each parser of the format is two in one: the reader's and the validator's, which must agree.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import zstandard

from formats import KexpError, canonical_json, dense, layout_section, manifest, meta, sections
from fuzz import foreign_files, json_text, remote_hub, sets
from fuzz.campaign import valid_folders
from fuzz.document_damage import random_document
from fuzz.layout_damage import LAYOUT_MUTATIONS
from fuzz.limits import guarded
from fuzz.mutate import mutate_any, mutate_set
from fuzz.odd_values import scramble
from fuzz.oracle import Oracle, disagreements, provide_zstd, scratch_folder
from fuzz.sets import Files
from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf.reader import open_gguf
from kandiga_pack.sources.safetensors_file import SafetensorsFile
from specs import validate_kexp

FILE = Path("model.kexp")
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """judge: problems with an input, none if all is well. mutate: another input from one."""

    judge: Callable[[bytes], list[str]]
    seeds: Callable[[], list[bytes]]
    mutate: Mutate


# Both sides of a parser.


def _reader_codes(problems: list[str], run: Callable[[], Any], size: int) -> list[str] | None:
    def codes() -> list[str]:
        try:
            run()
        except KexpError as error:
            return [error.code]
        return []

    return guarded(problems, "reader", codes, size)


def _validator_codes(
    problems: list[str], run: Callable[[validate_kexp.Log], Any], size: int
) -> list[str] | None:
    def codes() -> list[str]:
        report = validate_kexp.Report("", "integrity", None)
        run(validate_kexp.Log(report, FILE.name))
        return [finding.code for finding in report.findings]

    return guarded(problems, "validator", codes, size)


def _compare(
    data: bytes, reader: Callable[[], Any], validator: Callable[[validate_kexp.Log], Any]
) -> list[str]:
    problems: list[str] = []
    theirs = _reader_codes(problems, reader, len(data))
    listed = _validator_codes(problems, validator, len(data))
    if theirs is not None and listed is not None:
        problems += disagreements(theirs, listed)
    return problems


def judge_json(data: bytes) -> list[str]:
    def reader() -> None:
        value = canonical_json.decode(data, what="JSON")
        if canonical_json.encode(value) != data:
            raise AssertionError("what was called canonical is spelled otherwise")

    return _compare(
        data, reader, lambda log: validate_kexp.parse_json(data, log, 0, canonical=True)
    )


def judge_manifest(data: bytes) -> list[str]:
    def validator(log: validate_kexp.Log) -> None:
        value = validate_kexp.parse_json(data, log, 0, canonical=True)
        if isinstance(value, dict):
            validate_kexp.ManifestReader(log).run(value)
        elif value is not validate_kexp.NO_VALUE:
            log("E_MANIFEST", "is not an object")

    return _compare(data, lambda: manifest.parse_manifest(data, file=FILE), validator)


def judge_meta(data: bytes) -> list[str]:
    def validator(log: validate_kexp.Log) -> None:
        value = validate_kexp.parse_json(data, log, 0, canonical=True)
        if isinstance(value, dict):
            validate_kexp.MetaReader(log, 0, None).run(value)
        elif value is not validate_kexp.NO_VALUE:
            log("E_META", "is not an object")

    def reader() -> None:
        found = meta.parse_meta(data, file=FILE)
        # The reader compares them with the index, which has no such layout.
        if any(not 0 <= layer.layout < 4096 for layer in meta.layer_plans(found)):
            raise KexpError("E_META", "layout")

    return _compare(data, reader, validator)


def judge_layouts(data: bytes) -> list[str]:
    entry = validate_kexp.SectionEntry(b"LAYT", 0, 0, len(data), len(data), 0, 0, b"", 0)
    section = validate_kexp.Section(entry, 0)

    def reader() -> None:
        found = layout_section.parse_layouts(data, file=FILE)
        if layout_section.pack_layouts(found) != data:
            raise AssertionError("layouts are packed otherwise than they were read")

    return _compare(data, reader, lambda log: validate_kexp.LayoutReader(log, section, data).run())


class _Bytes:
    """In place of the validator's File."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, length: int) -> bytes:
        if not 0 <= offset <= len(self.data) - length:
            raise AssertionError(f"{length} bytes wanted at {offset} of {len(self.data)}")
        return self.data[offset : offset + length]


def judge_dense(data: bytes) -> list[str]:
    """The input is a whole DENS; what is accepted the stock library must accept too."""
    entry = validate_kexp.SectionEntry(b"DENS", 0, 0, len(data), len(data), 0, 0, b"", 0)
    section = validate_kexp.Section(entry, 0)
    accepted: list[int] = []

    def reader() -> None:
        size = dense.header_bytes(data[:8], section_bytes=len(data), file=FILE)
        found = dense.parse_image_header(
            data[:size], section_bytes=len(data), base_bytes=0, file=FILE
        )
        for tensor in found.values():
            if not size <= tensor.offset_bytes <= len(data) - tensor.length_bytes:
                raise AssertionError(f"{tensor} leaves the image")
        accepted.append(len(found))

    def validator(log: validate_kexp.Log) -> None:
        shard = validate_kexp.Shard(FILE, log)
        validate_kexp.read_dense_header(shard, section, _Bytes(data))  # type: ignore[arg-type]

    problems = _compare(data, reader, validator)
    if accepted and len(data) < 100_000:
        try:
            found = safetensors.deserialize(data)
        except Exception as error:
            problems.append(f"safetensors refuses what the reader accepts: {error}")
        else:
            if len(found) != accepted[0]:
                problems.append(f"safetensors sees {len(found)} tensors, not {accepted[0]}")
    return problems


def judge_zstd(data: bytes) -> list[str]:
    """The input is raw_len, 4 bytes, and what is stored."""
    if len(data) < 5:
        return []
    raw_bytes = int.from_bytes(data[:4], "little") % (16 << 20) + 1
    stored = data[4:]
    provide_zstd()
    section = sections.Section(b"prov", 0, len(stored), raw_bytes, 0, bytes(32), 1)
    outcomes: dict[str, bytes | None] = {"reader": None, "validator": None}
    problems: list[str] = []

    def reader() -> None:
        with contextlib.suppress(ValueError, zstandard.ZstdError):
            outcomes["reader"] = sections._decompress(stored, section.raw_bytes)

    def validator() -> None:
        if validate_kexp.zstd_frame_problem(stored, raw_bytes) is None:
            outcomes["validator"] = validate_kexp.zstd_decode(stored, raw_bytes)

    guarded(problems, "reader", reader, len(data))
    guarded(problems, "validator", validator, len(data))
    if outcomes["reader"] != outcomes["validator"]:
        sizes = {who: None if raw is None else len(raw) for who, raw in outcomes.items()}
        problems.append(f"zstd: decoded lengths {sizes}, wanted {raw_bytes}")
    return problems


@cache
def _oracle() -> Oracle:
    return Oracle(scratch_folder("targets"))


def close() -> None:
    """Remove what the targets left in memory."""
    if _oracle.cache_info().currsize:
        _oracle().close()
        _oracle.cache_clear()


def judge_set(data: bytes) -> list[str]:
    """The input is a zip of a folder."""
    try:
        files = sets.from_zip(data)
    except (ValueError, zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError):
        return []
    except Exception as error:  # zlib.error, struct.error: of the zip, not of ours
        return [] if type(error).__name__ in ("error", "UnicodeDecodeError") else [repr(error)]
    if any(not name or "/" in name or "\0" in name or len(name) > 200 for name in files):
        return []
    return _oracle().judge(files).problems


def judge_remote(data: bytes) -> list[str]:
    """The input is a zip of a folder that a Hub has: its index, by ranges, is judged as here.

    Shards are as long as kexp.json says, with zeros behind what the input has.
    """
    try:
        files = sets.from_zip(data)
        manifest.parse_manifest(files["kexp.json"], file=FILE)
    except Exception:  # of the zip, or for another target
        return []
    if any(not name or "/" in name or "\0" in name or len(name) > 200 for name in files):
        return []
    with remote_hub.both_ways(files, _oracle().folder) as (here, there):
        problems: list[str] = []
        seen_here = _reader_codes(problems, here, len(data))
        seen_there = _reader_codes(problems, there, len(data))
    # Of several faults each may name another: heads are fetched in another order than files opened.
    if seen_here is not None and seen_there is not None and bool(seen_here) != bool(seen_there):
        problems.append(f"verdicts differ: here {seen_here}, by ranges {seen_there}")
    return problems


def judge_file(data: bytes) -> list[str]:
    """The input is the one shard of a set; kexp.json says of it what its superblock says."""
    record = {"name": FILE.name, "shard_root": data[104:136].hex(), "size": len(data)}
    if len(record["shard_root"]) != 64:
        record["shard_root"] = "0" * 64
    document = {
        "files": [],
        "format": "kexp",
        "set_root": data[72:104].ljust(32, b"\0").hex(),
        "shards": [record],
        "version": 1,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return _oracle().judge({FILE.name: data, "kexp.json": text}).problems


def _foreign(data: bytes, name: str, read: Callable[[Path], None]) -> list[str]:
    problems: list[str] = []
    path = _oracle().folder.with_name(_oracle().folder.name + name)
    path.write_bytes(data)

    def attempt() -> None:
        try:
            read(path)
        except PackError as error:
            if "\n" in str(error):
                problems.append(f"a message of several lines: {str(error)!r}")

    try:
        guarded(problems, name, attempt, len(data))
    finally:
        path.unlink()
    return problems


def judge_gguf(data: bytes) -> list[str]:
    def read(path: Path) -> None:
        for tensor in open_gguf(path).tensors.values():
            if not 0 <= tensor.offset_bytes <= len(data) - tensor.num_rows * tensor.row_bytes:
                raise AssertionError(f"{tensor} leaves the file")
            tensor.read_rows(0, tensor.num_rows)

    return _foreign(data, ".gguf", read)


def judge_safetensors(data: bytes) -> list[str]:
    def read(path: Path) -> None:
        file = SafetensorsFile(path)
        try:
            for name, info in file.tensors.items():
                try:
                    array = file.read(name)
                except KexpError as error:  # elements narrower than a byte
                    if error.code != "E_DTYPE":
                        raise
                else:
                    assert array.shape == info.shape
        finally:
            file.close()

    return _foreign(data, ".safetensors", read)


# Where inputs come from.


def _valid_files() -> list[Files]:
    return [sets.read_folder(folder) for folder in valid_folders()]


def _bodies(tag: bytes) -> list[bytes]:
    shards = [shard for files in _valid_files() for shard in sets.parse_set(files).shards]
    found = [shard.find(tag) for shard in shards]
    return [bytes(each.raw) for each in found if each is not None and each.stored is None]


def _single_files() -> list[bytes]:
    return [files[FILE.name] for files in _valid_files() if FILE.name in files]


@cache
def _models() -> list[sets.SetModel]:
    return [sets.parse_set(files) for files in _valid_files()]


def _mutate_set(data: bytes, rng: random.Random) -> bytes:
    try:
        files = sets.from_zip(data)
    except Exception:
        files = {}
    return sets.to_zip(mutate_any(files, _models(), rng))


def _mutate_file(data: bytes, rng: random.Random) -> bytes:
    single = [model for model in _models() if len(model.shards) == 1]
    files, _ = mutate_set(rng.choice(single), rng)
    return next((data for name, data in files.items() if name.endswith(".kexp")), data)


def _mutate_document(data: bytes, rng: random.Random) -> bytes:
    try:
        return random_document(rng, json_text.parse(data))
    except (ValueError, RecursionError):
        return _mutate_bytes(data, rng)


def _mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    scramble(damaged, rng)
    return bytes(damaged)


def _mutate_dense(data: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or size > len(data):
        return _mutate_bytes(data, rng)
    text = _mutate_document(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _mutate_layouts(data: bytes, rng: random.Random) -> bytes:
    model = copy.deepcopy(rng.choice(_models()))
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(LAYOUT_MUTATIONS)(model, rng)
    section = model.shards[0].find(b"LAYT")
    return bytes(section.raw) if section else data


def _zstd_seeds() -> list[bytes]:
    found = []
    for raw in (b"a", b"abc" * 50, bytes(5000), bytes(1 << 20)):
        for checksum in (False, True):
            frame = zstandard.ZstdCompressor(write_checksum=checksum).compress(raw)
            found.append((len(raw) - 1).to_bytes(4, "little") + frame)
    return found


def _mutate_zstd(data: bytes, rng: random.Random) -> bytes:
    return data[:4] + _mutate_bytes(data[4:], rng)


def _json_seeds() -> list[bytes]:
    texts = [b"{}", b"[]", b'{"a":[1,-2,true,null,"\\u0001\\"\\\\x"]}', b'"\xf0\x9f\x98\x80"']
    return texts + _bodies(b"META")[:5]


TARGETS = {
    "set": Target(judge_set, lambda: [sets.to_zip(files) for files in _valid_files()], _mutate_set),
    "remote": Target(
        judge_remote, lambda: [sets.to_zip(files) for files in _valid_files()], _mutate_set
    ),
    "file": Target(judge_file, _single_files, _mutate_file),
    "json": Target(judge_json, _json_seeds, _mutate_document),
    "manifest": Target(
        judge_manifest, lambda: [files["kexp.json"] for files in _valid_files()], _mutate_document
    ),
    "meta": Target(judge_meta, lambda: _bodies(b"META"), _mutate_document),
    "layouts": Target(judge_layouts, lambda: _bodies(b"LAYT"), _mutate_layouts),
    "dense": Target(judge_dense, lambda: _bodies(b"DENS"), _mutate_dense),
    "zstd": Target(judge_zstd, _zstd_seeds, _mutate_zstd),
    "gguf": Target(
        judge_gguf,
        lambda: [foreign_files.gguf_seed().build()],
        lambda data, rng: foreign_files.mutate_gguf(rng),
    ),
    "safetensors": Target(
        judge_safetensors, lambda: [foreign_files.safetensors_seed()], _mutate_dense
    ),
}
