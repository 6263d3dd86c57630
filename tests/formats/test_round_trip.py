"""What is written is read back, for any model that version 1 can hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containers import LAYERS, make_meta, random_bytes, write_set
from formats import (
    BLOCK_ALIGN,
    TENSOR_ALIGN,
    DenseSpec,
    KexpError,
    Layout,
    Part,
    SetWriter,
    dtypes,
    open_set,
    plan_shards,
    verify_full,
)
from specs import validate_kexp

WHOLE_BYTE_DTYPES = [dtype.name for dtype in dtypes.TABLE if dtype.bits % 8 == 0]


def layouts() -> st.SearchStrategy[Layout]:
    plain = st.builds(
        lambda name, dtype, rows, cols, has_bias: [
            Part(name, "weight", dtype, (rows, cols)),
            *([Part(name, "bias", "f32", (rows,))] if has_bias else []),
        ],
        st.sampled_from(["fc1", "fc2"]),
        st.sampled_from(["f16", "bf16", "f32", "f8_e4m3"]),
        st.integers(1, 70),
        st.integers(1, 70),
        st.booleans(),
    )
    affine = st.builds(
        lambda name, bits, group, rows, groups, dtype: [
            Part(name, "weight", "u32", (rows, groups * group * bits // 32), "affine", bits, group),
            Part(name, "scales", dtype, (rows, groups), "affine", bits, group),
            Part(name, "biases", dtype, (rows, groups), "affine", bits, group),
        ],
        st.sampled_from(["gate", "up", "down", "gate_up"]),
        st.sampled_from([2, 3, 4, 5, 6, 8]),
        st.sampled_from([32, 64, 128]),
        st.integers(1, 40),
        st.integers(1, 3),
        st.sampled_from(["f16", "bf16", "f32"]),
    )
    floating = st.builds(
        lambda name, mode, rows, groups, has_bias: [
            *(
                Part(name, role, dtype, shape, *mode)
                for role, dtype, shape in (
                    ("weight", "u32", (rows, groups * mode[2] * mode[1] // 32)),
                    ("scales", "u8", (rows, groups)),
                    *((("global_scale", "f32", ()),) if mode[0] == "nvfp4" else ()),
                )
            ),
            *([Part(name, "bias", "bf16", (rows,))] if has_bias else []),
        ],
        st.sampled_from(["gate", "up", "down", "gate_up"]),
        st.sampled_from([("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]),
        st.integers(1, 40),
        st.integers(2, 4),
        st.booleans(),
    )
    projections = st.lists(
        plain | affine | floating,
        min_size=1,
        max_size=4,
        unique_by=lambda parts: parts[0].projection,
    )
    return projections.map(lambda groups: Layout.build(part for group in groups for part in group))


def dense_specs() -> st.SearchStrategy[list[DenseSpec]]:
    spec = st.builds(
        DenseSpec,
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.sampled_from(WHOLE_BYTE_DTYPES),
        st.lists(st.integers(0, 9), max_size=4).map(tuple),
    )
    return st.lists(spec, max_size=8, unique_by=lambda each: each.name).filter(
        lambda specs: all(each.name != "__metadata__" for each in specs)
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(1, 4), layouts()), min_size=1, max_size=4),
    st.sets(st.integers(0, 4095), min_size=4, max_size=4),
    dense_specs(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3 * BLOCK_ALIGN, 1 << 30]),
)
def test_any_model_comes_back(
    drawn: list[tuple[int, Layout]],
    numbers: set[int],
    specs: list[DenseSpec],
    seed: int,
    shard_bytes: int,
) -> None:
    layers = [
        (number, count, layout)
        for number, (count, layout) in zip(sorted(numbers), drawn, strict=False)
    ]
    with tempfile.TemporaryDirectory() as temp:
        dest = Path(temp) / "model"
        plan = plan_shards(1000, layers, shard_bytes=shard_bytes)
        rng = np.random.default_rng(seed)
        dense = {spec.name: random_bytes(rng, spec.length_bytes) for spec in specs}
        meta = make_meta(layers, top_k=1)
        with SetWriter(dest, plan, meta, specs) as writer:
            for name, data in dense.items():
                writer.write_dense(name, data)
            experts = {}
            for layer, num_experts, layout in layers:
                for expert in range(num_experts):
                    parts = {p.key: random_bytes(rng, p.length_bytes) for p in layout.parts}
                    experts[layer, expert] = parts
                    writer.write_expert(layer, expert, dict(parts))
            writer.commit()
        with open_set(dest) as opened:
            assert opened.layers == tuple(layer for layer, _, _ in layers)
            for layer, num_experts, layout in layers:
                assert opened.layout(layer) == layout
                assert opened.num_experts(layer) == num_experts
            for (layer, expert), parts in experts.items():
                block = opened.block(layer, expert)
                for part in opened.layout(layer).parts:
                    found = block[part.offset_bytes : part.offset_bytes + part.length_bytes]
                    assert found == parts[part.key]
            assert opened.dense.keys() == dense.keys()
            for spec in specs:
                found = opened.dense[spec.name]
                assert (found.dtype, found.shape) == (spec.dtype, spec.shape)
                assert opened.dense_array(spec.name).tobytes() == dense[spec.name]
        assert verify_full(dest).findings == []
        assert validate_kexp.validate(dest).findings == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("set") / "model"
    write_set(dest, shard_bytes=4 * BLOCK_ALIGN)
    return dest


def test_several_shards_hold_whole_layers(folder: Path) -> None:
    names = sorted(path.name for path in folder.glob("*.kexp"))
    assert names == [f"model-0000{number}-of-00004.kexp" for number in (1, 2, 3, 4)]
    with open_set(folder) as opened:
        assert [sorted(shard.layers) for shard in opened.shards] == [[], [1], [2], [5]]
        assert [len(shard.tensors) for shard in opened.shards] == [4, 0, 0, 0]


def test_extents_are_aligned_and_agree_with_the_index_view(folder: Path) -> None:
    with open_set(folder) as opened:
        for layer, num_experts, layout in LAYERS:
            shard, entries = opened.entries(layer)
            assert len(entries) == num_experts
            for expert in range(num_experts):
                extent = opened.extent(layer, expert)
                assert extent.offset_bytes % BLOCK_ALIGN == extent.block_bytes % BLOCK_ALIGN == 0
                assert extent.payload_bytes == layout.payload_bytes
                assert (extent.layer, extent.expert, extent.shard) == (layer, expert, shard)
                assert extent.offset_bytes == entries["offset_bytes"][expert]
                assert extent.crc32 == entries["crc32"][expert]
                assert extent.sha256 == entries["sha256"][expert].tobytes()


def test_a_shard_of_the_set_opens_the_set(folder: Path) -> None:
    with open_set(folder / "model-00003-of-00004.kexp") as opened:
        assert opened.layers == (1, 2, 5)
        assert opened.path == folder


def test_config_and_files(folder: Path) -> None:
    with open_set(folder) as opened:
        assert opened.config == {"model_type": "mixtral", "rope_theta": 1e6}
        assert opened.file("config.json") == folder / "config.json"
        with pytest.raises(KexpError, match=r"tokenizer\.json.*E_FILE_MISSING"):
            opened.file("tokenizer.json")


def test_asking_for_what_is_not_there(folder: Path) -> None:
    with open_set(folder) as opened:
        for layer, expert in ((0, 0), (1, 3), (1, -1), (5, 2), (6, 0)):
            with pytest.raises(KexpError) as caught:
                opened.extent(layer, expert)
            assert caught.value.code == "E_NO_EXPERT"
        with pytest.raises(KexpError, match="E_NO_TENSOR"):
            opened.dense_array("lm_head.weight")
        with pytest.raises(KeyError):
            opened.dense["lm_head.weight"]


def test_views_are_read_only_and_outlive_the_set(folder: Path) -> None:
    with open_set(folder) as opened:
        block = opened.block(1, 0)
        array = opened.dense_array("embed.weight")
        before = bytes(block[:16])
        assert block.readonly
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert bytes(block[:16]) == before
    assert array.shape == (20, 64)
    assert array.dtype == np.uint16


def test_tensors_are_aligned(folder: Path) -> None:
    with open_set(folder) as opened:
        for name in ("embed.weight", "norm.weight"):
            assert opened.dense[name].offset_bytes % TENSOR_ALIGN == 0
        assert list(opened.dense) == ["embed.weight", "norm.weight", "scale", "mask"]
        assert opened.dense["scale"].offset_bytes % 4 == 0
