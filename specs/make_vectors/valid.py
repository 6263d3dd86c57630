"""Sets that must be read."""

from __future__ import annotations

from typing import Any

from changes import (
    LONG,
    MAX_JSON_VALUES,
    Case,
    append,
    changed,
    compress,
    dense_text,
    many_values,
    poke,
)
from contents import Layout, Model, Part, weights
from models import DENSE, PLAIN, file_model, quantized, sharded, swiglu, tiny
from sets import Section, make
from zstd_frames import frame


def valid_cases() -> list[Case]:
    floating = Layout(
        quantized("gate", 32, 32, "mxfp4", 4, 32, "u8")
        + quantized("up", 32, 32, "mxfp8", 8, 32, "u8")
        + quantized("down", 32, 32, "nvfp4", 4, 16, "u8")
        + [Part("down", "global_scale", "f32", (), "nvfp4", 4, 16)]
    )
    biased = Layout(
        [
            *quantized("gate_up", 64, 32, "affine", 4, 32, "f32"),
            Part("gate_up", "bias", "f32", (64,)),
            *quantized("down", 32, 32, "affine", 4, 32, "f32"),
            Part("down", "bias", "bf16", (32,)),
        ]
    )
    mixed = Layout(
        quantized("gate", 32, 32, "affine", 3, 32, "bf16")
        + quantized("up", 32, 64, "affine", 5, 64, "f16")
        + quantized("down", 32, 128, "affine", 6, 128, "f32")
    )
    unquantized = Layout(
        [
            Part("gate", "weight", "bf16", (5, 7)),
            Part("up", "weight", "f16", (5, 7)),
            Part("down", "weight", "f32", (7, 5)),
        ]
    )
    dense = [
        ("wide", "f32", (8, 4), weights("wide", 128)),
        ("empty", "f32", (0, 4), b""),
        ("ints", "u32", (3,), weights("ints", 12)),
        ("scalar", "f32", (), weights("scalar", 4)),
        ("half", "f16", (3,), weights("half", 6)),
        ("bytes", "u8", (5,), weights("bytes", 5)),
    ]
    files = {
        "README.md": b"edited after publishing",
        "config.json": b'{"model_type":"tiny","rope_theta":1e6}\n',
        "tokenizer.json": b"{}",
    }
    source = {
        "files": {"model.safetensors": {"sha256": "0" * 64, "size": 12345}},
        "repository": "someone/tiny",
        "revision": None,
    }
    spelled: dict[str, Any] = {
        "later.key_1-a": [True, None, -1, 9007199254740991, '"\\/\n\u0001\u007f\u2028ü😀'],
        "counts": {"experts": 1},
        "tensors": {"model.safetensors": ["a", "h.3.fc1.weight", "h.3.fc2.weight"]},
        "source": source,
    }
    three = {3: (0, 1)}
    return [
        Case("single", make(tiny(2)), "the worked example of the specification", writer=True),
        Case(
            "quantized",
            make(Model([swiglu(4)], three, DENSE, {"source": source}, files)),
            "affine 4-bit gate, up, down; other files, one of them outside kexp.json",
            writer=True,
        ),
        Case(
            "shards",
            make(sharded()),
            "three shards, two layouts of 4 and 8 bits, layers 0 and 2",
            writer=True,
        ),
        Case(
            "two-layouts",
            make(Model([swiglu(2), PLAIN], {0: (0, 1), 7: (1, 1)}, DENSE)),
            "two layers with different layouts in one file",
            writer=True,
        ),
        Case(
            "mixed-bits",
            make(Model([mixed], three, DENSE)),
            "3, 5 and 6 bits, groups of 32, 64 and 128, three types of scales in one expert",
            writer=True,
        ),
        Case(
            "floating-modes",
            make(Model([floating], three, DENSE)),
            "mxfp4, mxfp8, nvfp4 with a global scale",
            writer=True,
        ),
        Case(
            "bias",
            make(Model([biased], three, DENSE)),
            "gate_up and down, each with a bias",
            writer=True,
        ),
        Case(
            "unquantized",
            make(Model([unquantized], three, DENSE)),
            "bf16, f16 and f32 weights of odd sizes",
            writer=True,
        ),
        Case(
            "dense-types",
            make(Model([PLAIN], three, dense)),
            "dense tensors: aligned, empty, scalar, odd sizes",
            writer=True,
        ),
        Case("no-dense", make(Model([PLAIN], three, [])), "no dense tensor at all", writer=True),
        Case(
            "meta-spelling",
            make(tiny(**spelled)),
            "unknown key, every escape, the largest integer",
            writer=True,
        ),
        Case(
            "zstd-meta",
            make(tiny(note=LONG), compress(b"META")),
            "META as one zstd frame; same roots as if it were raw",
        ),
        Case(
            "zstd-json-values",
            many_values(MAX_JSON_VALUES),
            "META of 2^18 values, as many as may be",
        ),
        Case(
            "zstd-ancillary",
            make(tiny(), append(Section(b"prov", LONG.encode(), frame(LONG.encode())))),
            "a compressed ancillary section",
        ),
        Case(
            "ancillary",
            make(tiny(), append(Section(b"zZZz", b"later"), Section(b"prov", b"{}"))),
            "an unknown ancillary section, and one before it in the alphabet behind it",
        ),
        Case(
            "compat-bit",
            changed(tiny(), poke(24, "<Q", 1 << 63 | 1)),
            "unknown bits of compat_features",
        ),
        Case("minor-version", changed(tiny(), poke(10, "<H", 7)), "version 1.7"),
        Case(
            "spare-layouts",
            make(Model([PLAIN, PLAIN, swiglu(4)], three, DENSE)),
            "two equal layouts and one that no layer uses",
        ),
        Case(
            "dense-spelling",
            dense_text(
                b'{ "b":{"data_offsets":[3,4],"shape":[1,1],"dtype":"U8"},\n'
                b'"__metadata__":{"format":"mlx"},'
                b'"\\u0061":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}  ',
                b"abcd",
            ),
            "a safetensors header spelled otherwise, with __metadata__",
        ),
        Case(
            "other-files",
            make(tiny()) | {"notes.txt": b"mine", "model-old.bin": b"x"},
            "files that do not belong to the set beside it",
        ),
        Case(
            "config-python-json",
            make(file_model('{"a":[0.0,Infinity],"a":NaN}')),
            "config.json as Python writes it",
        ),
    ]
