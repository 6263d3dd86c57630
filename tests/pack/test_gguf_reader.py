"""The GGUF header reader: what gguf wrote it reads, what is damaged or hostile it refuses."""

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter

from gguf_files import make_model, write_gguf
from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf import GgufSource, is_gguf
from kandiga_pack.sources.gguf.reader import open_gguf

STRING, ARRAY, UINT32 = 8, 9, 4
# A refusal reads a few kilobytes; gguf 0.19.0 never comes back from some of these files.
REFUSAL_SECONDS = 1.0


def header(num_tensors: int, num_keys: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(dims: list[int], kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    packed = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + packed + struct.pack("<IQ", kind, offset)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    start = time.thread_time()
    with pytest.raises(PackError) as caught:
        open_gguf(path)
    assert time.thread_time() - start < REFUSAL_SECONDS
    message = str(caught.value)
    assert message.startswith(path.name)
    assert "\n" not in message
    return message


def test_reads_what_gguf_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, make_model("mixtral", tmp_path / "mlx"), Kind.Q5_1)
    ours, theirs = open_gguf(path), GGUFReader(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.metadata[name] == field.contents(), name
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for stored in theirs.tensors:
        found = ours.tensors[stored.name]
        assert (found.type, found.shape) == (stored.tensor_type, tuple(stored.shape[::-1]))
        assert found.read_rows(0, found.num_rows) == stored.data.tobytes()


def test_reads_every_metadata_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    values = {
        "uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 1 << 31,
        "int32": -(1 << 30), "uint64": 1 << 60, "int64": -(1 << 60), "float32": 0.5,
        "float64": 0.1, "bool": True, "string": "héllo",
    }  # fmt: skip
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    writer.add_array("test.array", ["a", "bc", ""])
    writer.add_tensor("t", np.zeros((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = open_gguf(path).metadata
    assert {kind: metadata[f"test.{kind}"] for kind in values} == values
    assert metadata["test.array"] == ["a", "bc", ""]


HUGE = 1 << 62
HOSTILE = {
    "empty": (b"", "0 bytes"),
    "not GGUF": (b"GGML" + bytes(40), "b'GGML'"),
    "version 1": (header(0, 0, version=1), "version 1"),
    "big-endian": (header(0, 0, version=0x03000000), "big-endian"),
    # 43 bytes that hang gguf 0.19.0: an array of 2^62 items that take no room.
    "array count": (
        header(0, 1, text(b"k") + struct.pack("<IIQ", ARRAY, UINT32, HUGE)[:10] + b"\xff" * 6),
        "values",
    ),
    "string array count": (
        header(0, 1, key(b"k", ARRAY, struct.pack("<IQ", STRING, HUGE))), "strings",
    ),
    "key count": (header(0, HUGE), "metadata keys"),
    "key count beyond the file": (header(0, 60_000, bytes(100)), "only 100 bytes are left"),
    "tensor count": (header(HUGE, 0), "tensors"),
    "string length": (
        header(0, 1, key(b"k", STRING, struct.pack("<Q", HUGE))), "a string of",
    ),
    "key length": (header(0, 1, struct.pack("<Q", 1 << 20) + bytes(1 << 20)), "a string of"),
    "key not UTF-8": (header(0, 1, key(b"\xff\xfe", UINT32, bytes(4))), "UTF-8"),
    "metadata type": (header(0, 1, key(b"k", 99, bytes(8))), "metadata type 99"),
    "nested array": (
        header(0, 1, key(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(12))), "array of arrays",
    ),
    "key twice": (header(0, 2, key(b"k", UINT32, bytes(4)) * 2), "occurs twice"),
    "no dimensions": (header(1, 0, tensor([])), "0 dimensions"),
    "dimension count": (header(1, 0, tensor([1] * 5)), "5 dimensions"),
    "dimension count 2^32": (
        header(1, 0, text(b"t") + struct.pack("<I", 0xFFFFFFFF) + bytes(64)), "dimensions",
    ),
    "zero dimension": (header(1, 0, tensor([4, 0])), "shape (0, 4)"),
    # In 64 bits these products wrap to 4 and to 0.
    "product wraps to 4": (header(1, 0, tensor([1 << 62, (1 << 62) + 1])), "the file has"),
    "product wraps to 0": (header(1, 0, tensor([1 << 32, 1 << 32])), "the file has"),
    "type unknown": (header(1, 0, tensor([4], kind=250)), "unknown type 250"),
    "type removed from ggml": (header(1, 0, tensor([4], kind=4)), "unknown type 4"),
    "row not whole blocks": (header(1, 0, tensor([33], kind=2)), "multiple of 32"),
    "offset beyond the file": (header(1, 0, tensor([4], offset=1 << 40)), "the file has"),
    "offset wraps": (header(1, 0, tensor([4], offset=(1 << 64) - 32)), "the file has"),
    "offset not aligned": (header(1, 0, tensor([4], offset=4) + bytes(64)), "not aligned"),
    "data cut short": (header(1, 0, tensor([4], offset=0) + bytes(20)), "the file has"),
    "alignment 0": (
        header(1, 1, key(b"general.alignment", UINT32, bytes(4)) + tensor([4])), "power of two",
    ),
    "alignment 48": (
        header(1, 1, key(b"general.alignment", UINT32, b"\x30\0\0\0") + tensor([4])),
        "power of two",
    ),
    "tensor twice": (header(2, 0, tensor([4]) * 2 + bytes(80)), "tensor t occurs twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses(case: str, tmp_path: Path) -> None:
    data, wanted = HOSTILE[case]
    assert wanted in refused(tmp_path / "bad.gguf", data)


def test_accepts_the_smallest_whole_file(tmp_path: Path) -> None:
    """The refusals above are not refusals of everything."""
    body = tensor([4])
    padding = bytes(-(24 + len(body)) % 32)
    path = tmp_path / "good.gguf"
    path.write_bytes(header(1, 0, body + padding + struct.pack("<4f", 1, 2, 3, 4)))
    stored = open_gguf(path).tensors["t"]
    assert np.frombuffer(stored.read_rows(0, 1), np.float32).tolist() == [1, 2, 3, 4]


def test_refuses_every_truncation(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, make_model("llama", tmp_path / "mlx"), Kind.Q4_0)
    data = whole.read_bytes()
    cuts = [*range(0, 400, 7), *range(400, len(data), len(data) // 60), len(data) - 1]
    for length in cuts:
        refused(tmp_path / "cut.gguf", data[:length])


@pytest.mark.parametrize("family", ["mixtral", "qwen3_5_moe"])
def test_a_flipped_byte_is_refused_or_harmless(family: str, tmp_path: Path) -> None:
    """Whatever a header says, the answer is a source or one line: no other exception, no hang."""
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, make_model(family, tmp_path / "mlx"), Kind.Q8_0)
    data = whole.read_bytes()
    header_bytes = min(t.offset_bytes for t in open_gguf(whole).tensors.values())
    # Not in the token list, which is half of the header and free text.
    tokens, types = data.index(b"tokenizer.ggml.tokens"), data.index(b"tokenizer.ggml.token_type")
    positions = [*range(tokens), *range(types, header_bytes)]
    rng = random.Random(0)
    path = tmp_path / "flipped.gguf"
    outcomes = {"refused": 0, "opened": 0}
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.choice(positions)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        path.write_bytes(changed)
        try:
            GgufSource(path).close()
            outcomes["opened"] += 1
        except PackError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_parts_are_read_as_one_model(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    model = make_model("mixtral", tmp_path / "mlx")
    write_gguf(whole, model, Kind.Q4_1)
    reader = GGUFReader(whole)
    names = [f"tiny-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        _write_part(tmp_path / name, reader, number, len(names))
    with GgufSource(whole) as one, GgufSource(tmp_path / names[1]) as parts:
        assert list(parts.weight_files) == names
        assert parts.config == one.config
        assert sorted(parts.tensors) == sorted(one.tensors)
        for name in one.tensors:
            np.testing.assert_array_equal(parts.read(name), one.read(name), err_msg=name)
    (tmp_path / names[2]).unlink()
    with pytest.raises(PackError, match=r"1 of 3 parts missing, first tiny-00003-of-00003\.gguf"):
        GgufSource(tmp_path / names[0])


def _write_part(path: Path, whole: GGUFReader, number: int, count: int) -> None:
    """Every third tensor; the metadata in the first part only, as llama.cpp's splitter does."""
    writer = GGUFWriter(path, "llama")
    for name, field in whole.fields.items():
        if number == 0 and not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    for stored in whole.tensors[number::count]:
        writer.add_tensor(stored.name, stored.data, raw_dtype=stored.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_is_gguf_looks_inside(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(header(0, 0))
    (tmp_path / "b.gguf").write_bytes(b"{}")
    assert is_gguf(tmp_path / "a")
    assert not is_gguf(tmp_path / "b.gguf")
    assert not is_gguf(tmp_path)
