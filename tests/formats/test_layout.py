"""Layouts: placed in canonical order, and refused when a kernel could not trust them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

import pytest

from containers import affine_layout, plain_layout
from formats import BLOCK_ALIGN, TENSOR_ALIGN, KexpError, Layout, Part
from formats.layout_section import pack_layouts, parse_layouts

FILE = PurePath("model.kexp")


def quantized(mode: str, bits: int, group_size: int, scale_dtype: str) -> list[Part]:
    groups = 3
    words = groups * group_size * bits // 32
    parts = [
        Part("up", "weight", "u32", (4, words), mode, bits, group_size),
        Part("up", "scales", scale_dtype, (4, groups), mode, bits, group_size),
    ]
    if mode == "affine":
        parts.append(Part("up", "biases", scale_dtype, (4, groups), mode, bits, group_size))
    return parts


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_affine(bits: int, group_size: int, dtype: str) -> None:
    layout = Layout.build(quantized("affine", bits, group_size, dtype))
    assert parse_layouts(pack_layouts([layout]), file=FILE) == (layout,)


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"), [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
)
def test_floating_point_modes(mode: str, bits: int, group_size: int) -> None:
    parts = quantized(mode, bits, group_size, "u8")
    parts.append(Part("up", "bias", "bf16", (4,)))
    if mode == "nvfp4":
        parts.append(Part("up", "global_scale", "f32", (), mode, bits, group_size))
    layout = Layout.build(parts)
    assert parse_layouts(pack_layouts([layout]), file=FILE) == (layout,)
    last = "global_scale" if mode == "nvfp4" else "bias"
    assert layout.part("up", last) == layout.parts[-1]


def test_parts_are_placed_in_canonical_order() -> None:
    layout = Layout.build(reversed(affine_layout().parts))
    assert layout == affine_layout()
    assert [part.projection for part in layout.parts[::3]] == ["gate", "up", "down"]
    floor = 0
    for part in layout.parts:
        assert part.offset_bytes % TENSOR_ALIGN == 0
        assert 0 <= part.offset_bytes - floor < TENSOR_ALIGN
        floor = part.offset_bytes + part.length_bytes
    assert layout.payload_bytes == floor
    assert layout.block_bytes % BLOCK_ALIGN == 0
    assert layout.part("gate", "bias") is None


def test_several_layouts_keep_their_numbers() -> None:
    layouts = (affine_layout(), plain_layout(), affine_layout(128, 32))
    assert parse_layouts(pack_layouts(layouts), file=FILE) == layouts


GOOD = quantized("affine", 4, 32, "f16")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "0 parts"),
        ([replace(GOOD[0], projection="side")], "projection 'side'"),
        ([replace(GOOD[0], role="codes")], "role 'codes'"),
        ([*GOOD, GOOD[0]], "repeated or out of order"),
        (GOOD[1:], "has no weight"),
        (GOOD[:1], "scales and biases"),
        (GOOD[:2], "scales and biases"),
        ([replace(GOOD[0], dtype="i32"), *GOOD[1:]], "wanted is u32"),
        ([replace(GOOD[0], mode="gptq"), *GOOD[1:]], "mode 'gptq'"),
        ([replace(GOOD[0], bits=7), *GOOD[1:]], "bits 7"),
        ([replace(GOOD[0], group_size=16), *GOOD[1:]], "group_size 16"),
        ([replace(GOOD[0], shape=(4, 13)), *GOOD[1:]], "whole groups"),
        ([replace(GOOD[0], shape=(48,)), *GOOD[1:]], r"\(out, in\)"),
        ([replace(GOOD[0], shape=(2, 2, 12)), *GOOD[1:]], "impossible shape"),
        ([replace(GOOD[0], shape=(0, 12)), *GOOD[1:]], "impossible shape"),
        ([GOOD[0], replace(GOOD[1], shape=(4, 4)), GOOD[2]], "wanted with shape"),
        ([GOOD[0], replace(GOOD[1], dtype="u8"), GOOD[2]], "f16 or bf16 or f32"),
        ([GOOD[0], replace(GOOD[1], bits=8), GOOD[2]], "not quantized as its weight"),
        ([*GOOD, Part("up", "bias", "f32", (5,))], "one for each of 4 rows"),
        ([*GOOD, Part("up", "global_scale", "f32", (), "affine", 4, 32)], "no global_scale"),
        (
            [
                *quantized("nvfp4", 4, 16, "u8"),
                Part("up", "global_scale", "f32", (2,), "nvfp4", 4, 16),
            ],
            "one f32",
        ),
        ([Part("up", "weight", "f16", (4, 4), "none", 4, 0)], "wanted 0, 0"),
        (
            [Part("up", "weight", "f16", (4, 4)), Part("up", "scales", "f16", (4, 1))],
            "not quantized, yet has",
        ),
        ([Part("up", "weight", "f32", (1 << 15, 1 << 15))], "largest block"),
    ],
)
def test_layouts_that_are_refused(parts: list[Part], message: str) -> None:
    with pytest.raises(KexpError, match=message) as caught:
        Layout.build(parts)
    assert caught.value.code == "E_LAYOUT"


def test_the_largest_block() -> None:
    layout = Layout.build([Part("up", "weight", "u8", (1 << 15, 1 << 15))])
    assert layout.block_bytes == 1 << 30


@pytest.mark.parametrize("length", [0, 15, 16, 47, 48, 79, 80])
def test_a_truncated_section(length: int) -> None:
    raw = pack_layouts([affine_layout()])
    with pytest.raises(KexpError) as caught:
        parse_layouts(raw[:length], file=FILE)
    assert (caught.value.code, caught.value.file) == ("E_LAYOUT", "model.kexp")
