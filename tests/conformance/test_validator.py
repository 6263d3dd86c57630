"""The validator as a program: verdicts, all findings, JSON, exit codes, bounds."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from conformance.damage import Container, change_manifest
from containers import Body, rebuild, reseal_header, section_bodies, write_set
from kandiga_pack.cli import run
from specs import validate_kexp
from specs.validate_kexp import main, validate

SCRIPT = Path(validate_kexp.__file__)
# What a small file may cost, stated in the issue of hangs; measured: 0.03 s.
SMALL_FILE_SECONDS = 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A set of four shards."""
    write_set(tmp_path / "shards", shard_bytes=1)
    return tmp_path / "shards"


def found(path: Path, **options: str) -> list[tuple[str, str, int | None, int | None]]:
    findings = validate(path, **options).findings
    return [(f.file, f.code, f.layer, f.expert) for f in findings]


def test_imports_the_standard_library_only() -> None:
    names = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).partition(".")[0])
    assert names <= set(sys.stdlib_module_names) | {"__future__"}


@pytest.mark.parametrize("level", validate_kexp.LEVELS)
def test_sound_sets(folder: Path, shards: Path, level: str) -> None:
    for path in (folder, shards, folder / "model.kexp", shards / "model-00003-of-00004.kexp"):
        report = validate(path, level=level)
        assert (report.verdict, report.exit_code, report.findings) == ("valid", 0, [])


def test_every_byte_is_read(shards: Path) -> None:
    report = validate(shards)
    assert report.files_checked == 6
    assert report.bytes_checked == sum(file.stat().st_size for file in shards.iterdir())


def test_config_may_be_what_python_writes(folder: Path) -> None:
    text = (
        b'{"a": NaN, "b": [1.5, -Infinity, 1e400, -0], "a": "\\ud800", "c": 12345678901234567890}'
    )
    (folder / "config.json").write_bytes(text)
    record = {"name": "config.json", "sha256": hashlib.sha256(text).hexdigest(), "size": len(text)}
    change_manifest(folder, lambda manifest: manifest.update(files=[record]))
    assert found(folder) == []


def test_levels_include_one_another(folder: Path) -> None:
    """Each fault is found from its level on."""
    shard = Container(folder)
    shard.data[shard.at("BLKS")] ^= 1
    shard.save()
    assert [len(found(folder, level=level)) for level in validate_kexp.LEVELS] == [0, 0, 0, 1]
    shard.change_meta(lambda meta: meta.update(top_k=9))
    shard.save()
    assert [len(found(folder, level=level)) for level in validate_kexp.LEVELS] == [0, 0, 1, 2]
    shard.put("<H", shard.at("EXPT") + 6, 1)
    shard.seal()
    shard.save()
    assert [len(found(folder, level=level)) for level in validate_kexp.LEVELS] == [0, 1, 2, 3]
    shard.data[4000] = 1
    reseal_header(shard.data)
    shard.save()
    assert [len(found(folder, level=level)) for level in validate_kexp.LEVELS] == [1, 2, 3, 4]


def test_all_faults_of_a_set(shards: Path) -> None:
    names = [shards / f"model-0000{number}-of-00004.kexp" for number in (1, 2, 3, 4)]
    first, second, third, fourth = (bytearray(name.read_bytes()) for name in names)
    first[-1] ^= 1  # DENS
    second[-16384] ^= 1  # the last block of layer 1
    second[-2 * 16384] ^= 1
    second[4000] ^= 1  # superblock
    third[-1] ^= 1  # padding of the last block of layer 2
    fourth[:8] = b"12345678"
    for name, data in zip(names, (first, second, third, fourth), strict=True):
        name.write_bytes(data)
    (shards / "config.json").unlink()
    assert sorted(found(shards), key=str) == [
        ("config.json", "E_FILE_MISSING", None, None),
        (names[0].name, "E_SECTION_CRC", None, None),
        (names[1].name, "E_BLOCK_CRC", 1, 1),
        (names[1].name, "E_BLOCK_CRC", 1, 2),
        (names[1].name, "E_HEADER_CRC", None, None),
        (names[1].name, "E_PADDING", None, None),
        (names[2].name, "E_PADDING", 2, 2),
        (names[3].name, "E_MAGIC", None, None),
    ]


def test_one_wrong_entry_of_the_table_is_one_finding(folder: Path) -> None:
    """The sections after a section whose length is wrong are not called misplaced."""
    shard = Container(folder)
    shard.put("<Q", shard.row("META") + 24, shard.get("<Q", shard.row("META") + 16) + 128)
    shard.put("<Q", shard.row("META") + 16, shard.get("<Q", shard.row("META") + 16) + 128)
    shard.seal()
    shard.save()
    codes = [code for _, code, _, _ in found(folder)]
    assert codes.count("E_SECTION_EXTENT") == 1


def test_a_damaged_index_leaves_the_blocks_checkable(folder: Path) -> None:
    """A flipped bit in one entry, and a damaged block of another expert."""
    shard = Container(folder)
    shard.data[shard.at("EXPT") + 2 * 64 + 24] ^= 1  # the crc32 of layer 1 expert 2
    shard.data[shard.at("BLKS") + 1] ^= 1
    shard.save()
    assert [(code, layer, expert) for _, code, layer, expert in found(folder)] == [
        ("E_SECTION_CRC", None, None),
        ("E_BLOCK_CRC", 1, 0),
    ]


def test_a_wrong_layout_is_not_repeated_for_each_expert(folder: Path) -> None:
    shard = Container(folder)
    for at in range(shard.at("EXPT"), shard.at("EXPT") + 8 * 64, 64):
        shard.put("<H", at + 6, 1)
    shard.seal()
    shard.save()
    assert [code for _, code, _, _ in found(folder)] == ["E_INDEX"] * 8


def test_shards_of_another_set(shards: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "other", shard_bytes=1, seed=1)
    name = "model-00003-of-00004.kexp"
    (shards / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert found(shards) == [
        (name, "E_SHARD_ROOT", None, None),
        (name, "E_SET_ROOT", None, None),
    ]


def test_shards_exchanged(shards: Path) -> None:
    names = [shards / "model-00002-of-00004.kexp", shards / "model-00003-of-00004.kexp"]
    names[0].rename(shards / "x")
    names[1].rename(names[0])
    (shards / "x").rename(names[1])
    codes = {(file, code) for file, code, _, _ in found(shards)}
    assert {(name.name, "E_SHARD_NAME") for name in names} <= codes


def test_a_missing_shard_leaves_the_others_checked(shards: Path) -> None:
    (shards / "model-00002-of-00004.kexp").unlink()
    (shards / "model-00004-of-00004.kexp").write_bytes(
        (shards / "model-00004-of-00004.kexp").read_bytes()[:-1] + b"\1"
    )
    assert found(shards) == [
        ("model-00002-of-00004.kexp", "E_FILE_MISSING", None, None),
        ("model-00004-of-00004.kexp", "E_PADDING", 5, 1),
    ]


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = Container(folder)
    shard.data[shard.at("BLKS") + 100] ^= 1
    shard.save()
    assert main([str(folder), "--json"]) == 1
    out = capsys.readouterr().out
    report = json.loads(out)
    (finding,) = report.pop("findings")
    crc32s = finding.pop("message")
    assert crc32s.startswith("crc32 ")
    assert " != " in crc32s
    assert finding == {
        "code": "E_BLOCK_CRC",
        "file": "model.kexp",
        "offset": shard.at("BLKS"),
        "layer": 1,
        "expert": 0,
    }
    assert report == {
        "path": str(folder),
        "scope": "set",
        "level": "integrity",
        "against": None,
        "verdict": "invalid",
        "exit_code": 1,
        "omitted": [],
        "unchecked": [],
        "files_checked": 3,
        "bytes_checked": sum(file.stat().st_size for file in folder.iterdir()),
    }
    assert main([str(folder), "--json"]) == 1
    assert capsys.readouterr().out == out


def test_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = Container(folder)
    shard.data[shard.at("BLKS") + 100] ^= 1
    shard.save()
    assert main([str(folder), "--quiet"]) == 1
    line = capsys.readouterr().out
    assert line.startswith(f"model.kexp: layer 1 expert 0 at {shard.at('BLKS'):#x}: crc32 ")
    assert line.endswith(" (E_BLOCK_CRC)\n")


def test_exit_codes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same from the file and from kandiga-pack."""
    (tmp_path / "notes").write_text("")
    (tmp_path / "empty").mkdir()
    for arguments, code in (
        ([str(folder)], 0),
        ([str(tmp_path / "notes")], 1),
        ([str(tmp_path / "empty")], 1),
        ([str(tmp_path / "missing")], 3),
        ([str(folder), "--against", str(tmp_path / "missing")], 3),
    ):
        assert main(arguments) == code
        assert run(["validate", *arguments]) == code
    assert run(["validate"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["--level", "deep", str(folder)])
    capsys.readouterr()


def test_unreadable(folder: Path) -> None:
    """A pipe where a file should be is not waited for."""
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    report = validate(folder)
    assert [finding.code for finding in report.findings] == ["E_IO"]
    assert report.exit_code == 3


def compressed_meta(folder: Path) -> Container:
    shard = Container(folder)
    meta = shard.raw("META")
    shard.replace("META", meta, stored=zstandard.compress(meta))
    shard.save()
    return shard


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="has a zstd decoder")
def test_what_cannot_be_checked(folder: Path) -> None:
    compressed_meta(folder)
    report = validate(folder)
    assert (report.findings, report.exit_code, report.verdict) == ([], 4, "unchecked")
    assert "META is compressed" in report.unchecked[0][1]


class _Zstd:
    """`compression.zstd` of Python 3.14, as far as it is used, by the package zstandard."""

    ZstdError = zstandard.ZstdError

    class ZstdDecompressor:
        def __init__(self) -> None:
            self._decoder = zstandard.ZstdDecompressor().decompressobj()

        @property
        def eof(self) -> bool:
            return self._decoder.eof

        def decompress(self, data: bytes, max_length: int) -> bytes:
            return self._decoder.decompress(data)[:max_length]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="has a zstd decoder")
def test_compressed_sections(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", _Zstd)
    shard = Container(folder)
    meta, *others = section_bodies(shard.data)
    bodies = [Body("META", meta.raw, zstandard.compress(meta.raw)), *others]
    bodies.append(Body("prov", b"a" * 1000, zstandard.compress(b"a" * 1000)))
    shard.data = rebuild(shard.data, bodies)
    shard.save()
    assert validate(folder).exit_code == 0
    bodies.append(Body("hotl", b"a" * 1000, zstandard.compress(b"b" * 1000)))
    shard.data = rebuild(shard.data, bodies)
    shard.save()
    assert [code for _, code, _, _ in found(folder)] == ["E_SECTION_SHA256"]


def frame(**options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(b"metadata " * 100)


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (frame(), None),
        (frame(write_checksum=True), None),
        (frame(write_content_size=False), "does not announce"),
        (b"\x50\x2a\x4d\x18" + bytes(8), "does not begin with"),
        (frame() + b"\0", "the frame ends at byte"),
        (frame()[:-1], "the frame ends at byte"),
        (frame()[:7], "cut off"),
        (b"\x28\xb5\x2f\xfd" + b"\xe8" + bytes(20), "reserved bit"),
        (b"\x28\xb5\x2f\xfd" + b"\x21\x07\x00" + bytes(20), "needs a dictionary"),
        (b"\x28\xb5\x2f\xfd" + b"\x60\x84\x02" + b"\x07\0\0", "impossible block"),
        (b"\x28\xb5\x2f\xfd" + b"\x80\x70\x84\x03\0\0" + bytes(20), "window is 16777216"),
    ],
)
def test_zstd_frames(stored: bytes, problem: str | None) -> None:
    seen = validate_kexp.zstd_frame_problem(stored, 900)
    assert seen is None if problem is None else problem in str(seen)


def test_findings_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_kexp, "MAX_LISTED", 3)
    monkeypatch.setattr(validate_kexp, "MAX_LISTED_OF_RULE", 2)
    shard = Container(folder)
    for at in range(shard.at("EXPT"), shard.at("EXPT") + 8 * 64, 64):
        shard.put("<H", at + 6, 1)
        shard.put("<I", at + 24, 1)
    shard.seal()
    shard.save()
    report = validate(folder)
    assert [finding.code for finding in report.findings] == ["E_INDEX"] * 3 + ["E_BLOCK_CRC"] * 3
    assert "6 more" in report.findings[2].message
    assert report.omitted == [("model.kexp", "E_BLOCK_CRC", 5)]


def test_hostile_text_is_quoted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = Container(folder)
    shard.change_meta(lambda meta: meta.update({"\x1b[2J" * 500: 1}))
    shard.seal()
    shard.save()
    assert main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) < 200


def small_bombs(folder: Path) -> dict[str, bytes]:
    """Texts that are long to read or to hold, each in a file below 64 KiB."""
    pairs = b",".join(b'"%05d":{}' % number for number in range(1500))
    return {
        "brackets": b"[" * 15000,
        "objects": b'{"a":' * 3000,
        "lists": b'{"a":[' + b"[]," * 4000 + b"[]]}",
        "digits": b"[" + b"9" * 15000 + b"]",
        "escapes": b'"' + b"\\u0000" * 2500 + b'"',
        "backslashes": b'"' + b"\\" * 15000,
        "spaces": b" " * 15000,
        "strings": b'"' * 15000,
        "keys": b"{" + pairs + b"}",
    }


@pytest.mark.parametrize("name", sorted(small_bombs(Path())))
def test_small_files_are_checked_fast(folder: Path, name: str) -> None:
    shard = Container(folder)
    room = shard.at("DENS") - shard.at("META") - 2048
    shard.replace("META", small_bombs(folder)[name][:room])
    shard.seal()
    shard.save()
    begin = time.perf_counter()
    assert validate(folder).exit_code == 1
    (folder / "kexp.json").write_bytes(small_bombs(folder)[name])
    (folder / "config.json").write_bytes(small_bombs(folder)[name])
    validate(folder)
    assert time.perf_counter() - begin < 2 * SMALL_FILE_SECONDS


def test_memory_is_bounded_by_the_file(tmp_path: Path) -> None:
    """Fields that claim everything: nothing is allocated on their word."""
    write_set(tmp_path / "set")
    shard = Container(tmp_path / "set")
    for tag in ("META", "LAYT", "EXPT", "DENS", "BLKS"):
        for at in (16, 24):
            shard.put("<Q", shard.row(tag) + at, 2**63)
    shard.put("<Q", 32, 2**64 - 1)
    shard.save()
    change_manifest(tmp_path / "set", lambda m: m["shards"][0].update(size=2**53 - 1))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r}); from validate_kexp import main;"
        f"sys.exit(main([{str(tmp_path / 'set')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_too_many_json_values(tmp_path: Path) -> None:
    """16 MiB of empty lists would be half a gigabyte of objects."""
    folder = tmp_path / "set"
    folder.mkdir()
    text = b"[" + b"[]," * ((16 << 20) // 3 - 1) + b"[]]"
    (folder / "kexp.json").write_bytes(text[: 16 << 20])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = validate(folder)
    assert [finding.code for finding in report.findings] == ["E_JSON_VALUE"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 200 << 20


def test_a_file_that_ends_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut between the check of its size and the reading of its blocks."""
    path = folder / "model.kexp"
    semantics = validate_kexp.check_semantics

    def cut(kexp: validate_kexp.KexpSet) -> None:
        semantics(kexp)
        os.truncate(path, 100_000)

    monkeypatch.setattr(validate_kexp, "check_semantics", cut)
    report = validate(folder)
    assert [finding.code for finding in report.findings] == ["E_FILE_CHANGED"]
    assert report.exit_code == 3


def large_set(folder: Path, num_bytes: int) -> None:
    """Grow the dense weights of a set by zeros on a sparse file: long to read, quick to make."""
    write_set(folder)
    shard = Container(folder)
    shard.append("prov", b"1")
    at = shard.at("prov")
    row = shard.row("prov")
    shard.put("<Q", row + 16, num_bytes)
    shard.put("<Q", row + 24, num_bytes)
    shard.put("<Q", 32, at + num_bytes)
    struct.pack_into("<I", shard.data, 68, 0)
    reseal_header(shard.data)
    shard.save()
    os.truncate(folder / "model.kexp", at + num_bytes)
    change_manifest(folder, lambda m: m["shards"][0].update(size=at + num_bytes))


def test_interrupt_and_progress(tmp_path: Path) -> None:
    """On a terminal there is a bar; Ctrl-C ends with 130 and no traceback."""
    large_set(tmp_path / "set", 40 << 30)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "set")], stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while b"GB/s" not in seen:
        seen += os.read(ours, 1000)
    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    out, _ = process.communicate(timeout=20)
    assert time.perf_counter() - begin < 2
    assert process.returncode == 130
    assert out == b""
    rest = os.read(ours, 100_000)
    os.close(ours)
    assert b"interrupted" in rest
    assert b"Traceback" not in rest


def test_a_closed_pipe_is_quiet(folder: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} {SCRIPT} {folder} --json | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
