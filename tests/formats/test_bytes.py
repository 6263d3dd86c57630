"""A whole container as byte literals, and the worked example of the specification.

Alignment, order and endianness are visible here. A change of any byte is a change of the format.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from containers import merkle, section_bytes
from formats import DenseSpec, Layout, Part, SetWriter, open_set, plan_shards

SPEC = Path(__file__).resolve().parents[2] / "specs" / "kexp-v1.md"

LAYOUT = Layout.build([Part("fc1", "weight", "f16", (1, 2)), Part("fc2", "weight", "f16", (2, 1))])
META = {
    "architecture": "tiny",
    "activation": "relu",
    "hidden_size": 2,
    "quantization": None,
    "source": {},
    "top_k": 1,
    "layers": [{"layer": 3, "prefix": "h.3", "num_experts": 2}],
}

SUPERBLOCK = (
    b"\x89KEXP\r\n\x1a"  # magic
    b"\x01\x00\x00\x00"  # version 1.0
    b"\x00\x10\x00\x00"  # header_size
    b"\x00\x00\x00\x00\x00\x00\x00\x00"  # incompat_features
    b"\x00\x00\x00\x00\x00\x00\x00\x00"  # compat_features
    b"\x00\x00\x01\x00\x00\x00\x00\x00"  # file_size
    b"\x00\x40\x00\x00"  # block_align
    b"\x80\x00\x00\x00"  # tensor_align
    b"\x00\x00\x00\x00\x01\x00\x00\x00"  # shard 0 of 1
    b"\x00\x10\x00\x00\x00\x00\x00\x00"  # section_off
    b"\x05\x00\x00\x00"  # section_count
    b"\xcclF\xe4"  # table_crc
    + bytes.fromhex("6113ac0192906c5a66963cd11d689afa36f6d2b47cf54cacef20f3bc4d522266")
    + bytes.fromhex("d2af108f91d04bff8973de3033911e11f07ced9eaf353898015e5e4f22efe43f")
    + bytes(3956)
    + b"Z\x03\xb7\x14"  # header_crc
)
TABLE = (
    b"META\x00\x00\x00\x00\x00\x12\x00\x00\x00\x00\x00\x00"
    b"\x0e\x01\x00\x00\x00\x00\x00\x00\x0e\x01\x00\x00\x00\x00\x00\x00\xa0\x90\x83\x82\x00\x00\x00\x00"
    + bytes.fromhex("567bbd1c1fd979f85de41e66b6844e5629a7c2c5a54da688abc09cbd326db4b1")
    + bytes(8)
    + b"LAYT\x00\x00\x00\x00\x80\x13\x00\x00\x00\x00\x00\x00"
    b"p\x00\x00\x00\x00\x00\x00\x00p\x00\x00\x00\x00\x00\x00\x00\xdc\xaf\x1d\xde\x00\x00\x00\x00"
    + bytes.fromhex("bda27b8fcc2f32b5a55c21c639244b46f42d3e641b724c6e818633829680caf9")
    + bytes(8)
    + b"EXPT\x00\x00\x00\x00\x00\x14\x00\x00\x00\x00\x00\x00"
    b"\x80\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00Z\xc7m\x99\x00\x00\x00\x00"
    + bytes.fromhex("a88e3f8ae889584429ad9309e6589ab836293241e7d0c2280e6d35dc168ebd42")
    + bytes(8)
    + b"DENS\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00"
    b"\x83\x00\x00\x00\x00\x00\x00\x00\x83\x00\x00\x00\x00\x00\x00\x00B\xc8\xc2~\x00\x00\x00\x00"
    + bytes.fromhex("f541b20ae725f490fe9ca2e20e7215f4bbc80a45405c04fb8b1e8c9d7f2bed0a")
    + bytes(8)
    + b"BLKS\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00"
    b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    + bytes.fromhex("00f7ff87ddec7ca5e12d2c8f9e18c7f9fda07a83d237e868118bd289cf68465d")
    + bytes(8)
)
META_BYTES = (
    b'{"activation":"relu","architecture":"tiny","dense_header":{"sha256":'
    b'"e2256dba1836b89f7b43a55ef70ca195f9277a56d051e3e05cf17f02158ca2da","size":128},'
    b'"hidden_size":2,"layers":[{"layer":3,"layout":0,"num_experts":2,"prefix":"h.3"}],'
    b'"quantization":null,"source":{},"top_k":1}'
)
LAYT_BYTES = (
    b"\x01\x00\x00\x00" + bytes(12) + b"\x00\x00\x02\x00\x00\x00\x00\x00"
    b"\x84\x00\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00" + bytes(8) +
    # projection, role, dtype, mode, ndim, bits, group_size, rows, cols, offset, length
    b"\x05\x01\x0a\x01\x02\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00"
    b"\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00"
    b"\x06\x01\x0a\x01\x02\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00"
    b"\x80\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00"
)
EXPT_BYTES = (
    b"\x03\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00"
    b"\x00\x40\x00\x00\x00\x00\x00\x00\xce\xaf5\xd7\x00\x00\x00\x00"
    + bytes.fromhex("fbca885012d1eadc24bf7bde3b805f0328dd8dd064ff853014adcfd9c61e63ef")
    + b"\x03\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x00\x00\x00\x00\x00\x00"
    b"\x00\x40\x00\x00\x00\x00\x00\x00\x41\x78\xf1\xd2\x00\x00\x00\x00"
    + bytes.fromhex("3cc60b561e81a431e0c913cbdefc72ab7be09d3c1431fd91b38b19859c2dba8a")
)
DENS_BYTES = (
    b"\x78\x00\x00\x00\x00\x00\x00\x00"
    + b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'.ljust(120)
    + b"abc"
)
BLOCKS = (
    b"\x01\x02\x03\x04"
    + bytes(124)
    + b"\x05\x06\x07\x08"
    + bytes(16384 - 132)
    + b"\x09\x0a\x0b\x0c"
    + bytes(124)
    + b"\x0d\x0e\x0f\x10"
    + bytes(16384 - 132)
)
WHOLE_FILE = (
    SUPERBLOCK
    + TABLE.ljust(512, b"\0")
    + META_BYTES.ljust(384, b"\0")
    + LAYT_BYTES.ljust(128, b"\0")
    + EXPT_BYTES.ljust(16384 - 5120, b"\0")
    + DENS_BYTES.ljust(16384, b"\0")
    + BLOCKS
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = plan_shards(3, [(3, 2, LAYOUT)])
    dest = tmp_path / "tiny"
    with SetWriter(dest, plan, META, [DenseSpec("a", "u8", (3,))]) as writer:
        writer.write_dense("a", b"abc")
        for expert in (0, 1):
            first = BLOCKS[16384 * expert :][:4]
            second = BLOCKS[16384 * expert + 128 :][:4]
            writer.write_expert(3, expert, {("fc1", "weight"): first, ("fc2", "weight"): second})
        writer.commit()
    return dest


def test_the_file_is_these_bytes(folder: Path) -> None:
    written = (folder / "model.kexp").read_bytes()
    assert len(written) == len(WHOLE_FILE) == 65536
    for name, start, end in (
        ("superblock", 0, 4096),
        ("table", 4096, 4608),
        ("META", 4608, 4992),
        ("LAYT", 4992, 5120),
        ("EXPT", 5120, 16384),
        ("DENS", 16384, 32768),
        ("BLKS", 32768, 65536),
    ):
        assert written[start:end] == WHOLE_FILE[start:end], name


def test_the_manifest_is_these_bytes(folder: Path) -> None:
    assert (folder / "kexp.json").read_text() == (
        '{"files":[],"format":"kexp",'
        '"set_root":"6113ac0192906c5a66963cd11d689afa36f6d2b47cf54cacef20f3bc4d522266",'
        '"shards":[{"name":"model.kexp","shard_root":'
        '"d2af108f91d04bff8973de3033911e11f07ced9eaf353898015e5e4f22efe43f","size":65536}],'
        '"version":1}'
    )


def test_the_bytes_are_read_back(folder: Path) -> None:
    with open_set(folder) as opened:
        assert bytes(opened.block(3, 1)[:4]) == b"\t\n\v\f"
        assert opened.dense_array("a").tobytes() == b"abc"


def test_roots_follow_from_the_specification() -> None:
    entries = [TABLE[at : at + 80] for at in range(0, 400, 80)]
    identities = [entry[:4] + entry[24:32] + entry[40:72] for entry in entries]
    shard_root = merkle([SUPERBLOCK[:24] + SUPERBLOCK[40:56], *identities])
    assert shard_root == SUPERBLOCK[104:136]
    assert merkle([shard_root]) == SUPERBLOCK[72:104]
    index = section_bytes(WHOLE_FILE, "EXPT")
    assert merkle([index[32:64], index[96:128]]) == entries[4][40:72]
    raws = (META_BYTES, LAYT_BYTES, EXPT_BYTES, DENS_BYTES)
    for entry, raw in zip(entries[:4], raws, strict=True):
        assert hashlib.sha256(raw).digest() == entry[40:72]


def test_the_worked_example_shows_this_file() -> None:
    example = SPEC.read_text().partition("## 17. Worked example")[2]
    assert META_BYTES.decode() in example
    digits = re.sub(r"\s", "", example)
    for shown in (LAYT_BYTES, EXPT_BYTES, SUPERBLOCK[72:104], SUPERBLOCK[104:136], TABLE[360:392]):
        assert shown.hex() in digits
    assert (SUPERBLOCK[:24] + SUPERBLOCK[40:56]).hex() in digits
