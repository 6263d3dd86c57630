"""Layouts that must be refused."""

from __future__ import annotations

from changes import Case, Poke, changed, inside
from contents import Layout, Model, Part
from models import DENSE, PLAIN, quantized, sharded, tiny
from sets import Files, make, seal


def layout_cases() -> list[Case]:
    """PLAIN has one layout at 16; its two parts begin at 48 and 80."""
    fields: list[tuple[str, Poke, str, str]] = [
        ("count-zero", inside(b"LAYT", 0, "<I", 0), "", "E_LAYOUT"),
        ("count", inside(b"LAYT", 0, "<I", 2), "more layouts than there are", "E_LAYOUT"),
        ("reserved", inside(b"LAYT", 4, "B", 1), "", "E_LAYOUT"),
        ("id", inside(b"LAYT", 16, "<H", 1), "", "E_LAYOUT"),
        ("no-parts", inside(b"LAYT", 18, "<H", 0), "", "E_LAYOUT"),
        ("parts", inside(b"LAYT", 18, "<H", 1), "a part less, bytes follow", "E_LAYOUT"),
        ("payload", inside(b"LAYT", 24, "<Q", 133), "", "E_LAYOUT"),
        ("block", inside(b"LAYT", 32, "<Q", 1 << 63), "", "E_LAYOUT"),
        ("projection", inside(b"LAYT", 48, "B", 7), "", "E_LAYOUT"),
        ("role", inside(b"LAYT", 49, "B", 0), "", "E_LAYOUT"),
        ("order", inside(b"LAYT", 48, "B", 6), "a part twice", "E_LAYOUT"),
        ("dtype", inside(b"LAYT", 50, "B", 23), "", "E_DTYPE"),
        ("half-byte", inside(b"LAYT", 50, "<BBBBHII", 20, 1, 2, 0, 0, 1, 1), "", "E_DTYPE"),
        ("mode", inside(b"LAYT", 51, "B", 6), "", "E_LAYOUT"),
        ("ndim", inside(b"LAYT", 52, "B", 3), "", "E_LAYOUT"),
        ("ndim-small", inside(b"LAYT", 52, "B", 1), "cols 2 of one dimension", "E_LAYOUT"),
        ("bits", inside(b"LAYT", 53, "B", 4), "mode none with bits", "E_LAYOUT"),
        ("rows", inside(b"LAYT", 56, "<I", 0), "", "E_LAYOUT"),
        ("huge", inside(b"LAYT", 56, "<II", 2**32 - 1, 2**32 - 1), "", "E_LAYOUT"),
        ("offset", inside(b"LAYT", 64, "<Q", 128), "", "E_LAYOUT"),
        ("length", inside(b"LAYT", 72, "<Q", 5), "", "E_LAYOUT"),
        ("lone-scales", inside(b"LAYT", 81, "B", 2), "a projection without weight", "E_LAYOUT"),
    ]
    cases = [
        Case(f"layout-{name}", changed(tiny(), each), f"LAYT: {note or name}", code)
        for name, each, note, code in fields
    ]

    def refused(name: str, parts: list[Part], note: str) -> Case:
        model = Model([Layout(parts)], {3: (0, 1)}, DENSE)
        return Case(f"layout-{name}", make(model), note, "E_LAYOUT")

    good = quantized("up", 32, 32, "affine", 4, 32, "bf16")
    coding = ("affine", 4, 32)
    return [
        *cases,
        refused("no-biases", good[:2], "affine without biases"),
        refused(
            "scales-shape",
            [good[0], Part("up", "scales", "bf16", (32, 2), *coding), good[2]],
            "scales of another number of groups",
        ),
        refused(
            "scales-type",
            [good[0], Part("up", "scales", "u8", (32, 1), *coding), good[2]],
            "affine scales in u8",
        ),
        refused(
            "groups",
            [Part("up", "weight", "u32", (32, 5), *coding), *good[1:]],
            "a row of 40 elements in groups of 32",
        ),
        refused(
            "bits-7",
            [Part("up", each.role, each.dtype, each.shape, "affine", 7, 32) for each in good],
            "7 bits",
        ),
        refused(
            "global-scale",
            [*good, Part("up", "global_scale", "f32", (), *coding)],
            "a global scale in mode affine",
        ),
        refused(
            "bias-shape",
            [*good, Part("up", "bias", "f32", (31,))],
            "a bias of another number of rows",
        ),
        refused(
            "plain-scales",
            [Part("up", "weight", "f16", (4, 4)), Part("up", "scales", "f16", (4, 1))],
            "an unquantized weight with scales",
        ),
        Case(
            "layout-differs",
            layouts_differ(),
            "the layouts of a later shard are others",
            "E_LAYOUT",
        ),
    ]


def layouts_differ() -> Files:
    """Three shards, the last of which has a layout more."""
    files = make(sharded())
    longer = sharded()
    longer.layouts.append(PLAIN)
    name = "model-00003-of-00003.kexp"
    files[name] = make(longer)[name]
    seal(files)
    return files
