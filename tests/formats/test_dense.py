"""The dense section is a safetensors image that the stock reader reads, whatever the types."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from containers import LAYERS, make_meta, random_bytes, section_bytes
from formats import DenseSpec, KexpError, SetWriter, dtypes, open_set, plan_image, plan_shards
from formats.dense import parse_image_header

SHAPES = {4: (4, 2), 6: (4, 4)}  # the shortest that make whole bytes of each narrow width


def write_dense_only(dest: Path, tensors: dict[DenseSpec, bytes]) -> None:
    """Write a set whose experts do not matter."""
    with SetWriter(dest, plan_shards(0, LAYERS), make_meta(LAYERS), list(tensors)) as writer:
        for spec, data in tensors.items():
            writer.write_dense(spec.name, data)
        for layer, num_experts, layout in LAYERS:
            for expert in range(num_experts):
                parts = {part.key: bytes(part.length_bytes) for part in layout.parts}
                writer.write_expert(layer, expert, dict(parts))
        writer.commit()


def test_the_stock_reader_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "f": rng.standard_normal((3, 5)).astype(np.float32),
        "h": rng.standard_normal(64).astype(np.float16),
        "u": rng.integers(0, 2**32, (8, 16), dtype=np.uint32),
        "b": np.array([True, False, True]),
        "i": np.array(-7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }
    names = {"float32": "f32", "float16": "f16", "uint32": "u32", "bool": "bool", "int64": "i64"}
    tensors = {
        DenseSpec(name, names[str(array.dtype)], array.shape): array.tobytes()
        for name, array in arrays.items()
    }
    write_dense_only(tmp_path / "set", tensors)
    image = section_bytes((tmp_path / "set" / "model.kexp").read_bytes(), "DENS")
    loaded = safetensors.numpy.load(image)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_every_type_is_held_and_known_to_the_stock_reader(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = {}
    for dtype in dtypes.TABLE:
        spec = DenseSpec(f"t.{dtype.name}", dtype.name, SHAPES.get(dtype.bits, (3, 5)))
        tensors[spec] = random_bytes(rng, spec.length_bytes)
    write_dense_only(tmp_path / "set", tensors)
    image = section_bytes((tmp_path / "set" / "model.kexp").read_bytes(), "DENS")
    stock = dict(safetensors.deserialize(image))
    with open_set(tmp_path / "set") as opened:
        for spec, data in tensors.items():
            assert opened.dense[spec.name].dtype == spec.dtype
            assert opened.dense_array(spec.name).tobytes() == data
            assert stock[spec.name]["dtype"] == dtypes.to_safetensors(spec.dtype)
            assert bytes(stock[spec.name]["data"]) == data


def test_no_dense_tensors_at_all(tmp_path: Path) -> None:
    write_dense_only(tmp_path / "set", {})
    image = section_bytes((tmp_path / "set" / "model.kexp").read_bytes(), "DENS")
    assert safetensors.numpy.load(image) == {}
    with open_set(tmp_path / "set") as opened:
        assert dict(opened.dense) == {}


@pytest.mark.parametrize("order", ["given", "reversed", "chunks"])
def test_the_order_of_writing_does_not_matter(tmp_path: Path, order: str) -> None:
    rng = np.random.default_rng(3)
    lengths = {"a": 256, "b": 7, "c": 128, "d": 3}
    specs = [DenseSpec(name, "u8", (length,)) for name, length in lengths.items()]
    data = {spec.name: random_bytes(rng, spec.length_bytes) for spec in specs}
    with SetWriter(tmp_path / order, plan_shards(0, LAYERS), make_meta(LAYERS), specs) as writer:
        names = [spec.name for spec in specs]
        if order == "chunks":
            for start in range(0, 256, 50):
                for name in names:
                    writer.write_dense_chunk(name, data[name][start : start + 50])
        else:
            for name in names if order == "given" else reversed(names):
                writer.write_dense(name, data[name])
        for layer, num_experts, layout in LAYERS:
            for expert in range(num_experts):
                parts = {part.key: bytes(part.length_bytes) for part in layout.parts}
                writer.write_expert(layer, expert, dict(parts))
        writer.commit()
    image = section_bytes((tmp_path / order / "model.kexp").read_bytes(), "DENS")
    assert {name: bytes(array) for name, array in safetensors.numpy.load(image).items()} == data
    with open_set(tmp_path / order) as opened:
        assert list(opened.dense) == ["a", "c", "b", "d"]


def test_arrays_must_be_contiguous(tmp_path: Path) -> None:
    specs = [DenseSpec("a", "u8", (4, 4))]
    with (
        SetWriter(tmp_path / "set", plan_shards(0, LAYERS), make_meta(LAYERS), specs) as writer,
        pytest.raises(ValueError, match="not C-contiguous"),
    ):
        writer.write_dense("a", np.zeros((4, 8), dtype=np.uint8)[:, ::2])


def image(text: str, data: bytes = b"") -> tuple[bytes, int]:
    header = struct.pack("<Q", len(text)) + text.encode()
    return header, len(header) + len(data)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[]", "E_DENSE"),
        (' {"a":1}', "E_DENSE"),
        ('{"a":1}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[2]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":0}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":2,"data_offsets":[0,2]}}', "E_DENSE"),
        ('{"a":{"dtype":8,"shape":[2],"data_offsets":[0,2]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,4]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,3]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', "E_DENSE"),
        ('{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}', "E_DENSE"),
        (
            '{"a":{"dtype":"U8","shape":[9007199254740991,2,0],"data_offsets":[0,0]}}',
            "E_DENSE",
        ),
        ('{"__metadata__":{"a":1}}', "E_DENSE"),
        ('{"__metadata__":[]}', "E_DENSE"),
        ('{"a":{"dtype":"u8","shape":[2],"data_offsets":[0,2]}}', "E_DTYPE"),
        ('{"a":{"dtype":"U9","shape":[2],"data_offsets":[0,2]}}', "E_DTYPE"),
        ('{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}', "E_DTYPE"),
        ('{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}', "E_JSON_VALUE"),
        ('{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[]}}', "E_JSON_VALUE"),
        (
            '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
            '"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
            "E_JSON_DUPLICATE_KEY",
        ),
        (
            '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
            '"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
            "E_DENSE",
        ),
    ],
)  # fmt: skip
def test_bad_headers(text: str, code: str) -> None:
    header, section_bytes = image(text, b"xy")
    with pytest.raises(KexpError) as caught:
        parse_image_header(header, section_bytes=section_bytes, base_bytes=0, file=None)
    assert caught.value.code == code


def test_metadata_of_others_is_ignored() -> None:
    text = '{"__metadata__":{"format":"mlx"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    header, section_bytes = image(text, b"xy")
    found = parse_image_header(header, section_bytes=section_bytes, base_bytes=100, file=None)
    assert found["a"].offset_bytes == 100 + len(header)


@pytest.mark.parametrize(
    ("specs", "code"),
    [
        ([DenseSpec("a", "u8", (1,)), DenseSpec("a", "u8", (2,))], "E_DENSE"),
        ([DenseSpec("a", "f4", (3,))], "E_DTYPE"),
        ([DenseSpec("a", "float32", (3,))], "E_DTYPE"),
        ([DenseSpec("a", "u8", (1,) * 33)], "E_DENSE"),
        ([DenseSpec("n" * 4097, "u8", (1,))], "E_JSON_VALUE"),
        ([DenseSpec("__metadata__", "u8", (1,))], "E_DENSE"),
    ],
)
def test_what_cannot_be_planned(specs: list[DenseSpec], code: str) -> None:
    with pytest.raises(KexpError) as caught:
        plan_image(specs)
    assert caught.value.code == code
