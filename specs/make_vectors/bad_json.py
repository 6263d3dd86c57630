"""JSON that is not as it must be spelled, and META that says what is not so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from changes import Case, meta_changed, meta_text


def json_cases() -> list[Case]:
    texts: list[tuple[str, Callable[[bytes], bytes], str]] = [
        ("json-text", lambda raw: raw[:-1], "E_JSON"),
        ("json-latin1", lambda raw: b'{"a":"\xff"}', "E_JSON"),
        ("json-surrogate-bytes", lambda raw: b'{"a":"\xed\xa0\x80"}', "E_JSON"),
        ("json-bom", lambda raw: b"\xef\xbb\xbf" + raw, "E_JSON"),
        ("json-nan", lambda raw: b'{"a":NaN}', "E_JSON"),
        ("json-control", lambda raw: b'{"a":"\n"}', "E_JSON"),
        ("json-key-twice", lambda raw: b'{"a":1,"a":1}', "E_JSON_DUPLICATE_KEY"),
        ("json-key-escaped", lambda raw: b'{"a":1,"\\u0061":1}', "E_JSON_DUPLICATE_KEY"),
        ("json-fraction", lambda raw: b'{"a":1.5}', "E_JSON_VALUE"),
        ("json-exponent", lambda raw: b'{"a":1e3}', "E_JSON_VALUE"),
        ("json-integer", lambda raw: b'{"a":9007199254740992}', "E_JSON_VALUE"),
        ("json-negative", lambda raw: b'{"a":-9007199254740992}', "E_JSON_VALUE"),
        ("json-digits", lambda raw: b'{"a":' + b"9" * 5000 + b"}", "E_JSON_VALUE"),
        ("json-surrogate", lambda raw: b'{"a":"\\ud800"}', "E_JSON_VALUE"),
        ("json-string", lambda raw: b'{"a":"' + b"x" * 4097 + b'"}', "E_JSON_VALUE"),
        ("json-deep", lambda raw: b'{"a":' + b"[" * 16 + b"]" * 16 + b"}", "E_JSON_VALUE"),
        ("json-space", lambda raw: raw.replace(b",", b", "), "E_JSON_CANONICAL"),
        ("json-order", lambda raw: b'{"b":1,"a":1}', "E_JSON_CANONICAL"),
        # U+1F600 is above U+FF21 by code points, and below it by UTF-16 units.
        ("json-utf16-order", lambda raw: '{"😀":1,"\uff21":1}'.encode(), "E_JSON_CANONICAL"),
        ("json-escape", lambda raw: b'{"a":"\\/"}', "E_JSON_CANONICAL"),
        ("json-escape-case", lambda raw: b'{"a":"\\u001F"}', "E_JSON_CANONICAL"),
        ("json-minus-zero", lambda raw: b'{"a":-0}', "E_JSON_CANONICAL"),
    ]
    return [
        Case(name, meta_text(encode), f"META: {name[5:].replace('-', ' ')}", code)
        for name, encode, code in texts
    ]


def meta_cases() -> list[Case]:
    edits: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("missing-key", lambda m: m.pop("top_k")),
        ("capital-key", lambda m: m.update(Alpha=1)),
        ("wrong-type", lambda m: m.update(architecture=None)),
        ("bool", lambda m: m.update(hidden_size=True)),
        ("hidden-size", lambda m: m.update(hidden_size=0)),
        ("top-k-zero", lambda m: m.update(top_k=0)),
        ("top-k", lambda m: m.update(top_k=2)),
        ("no-layers", lambda m: m.update(layers=[])),
        ("layer-number", lambda m: m["layers"][0].update(layer=4096)),
        ("other-layer", lambda m: m["layers"][0].update(layer=4)),
        ("other-count", lambda m: m["layers"][0].update(num_experts=2)),
        ("other-layout", lambda m: m["layers"][0].update(layout=1)),
        ("layer-more", lambda m: m["layers"].append(m["layers"][0] | {"layer": 4})),
        ("no-prefix", lambda m: m["layers"][0].pop("prefix")),
        ("pin-key", lambda m: m["dense_header"].update(more=1)),
        ("pin-digest", lambda m: m["dense_header"].update(sha256="0")),
        ("source", lambda m: m.update(source=None)),
        ("source-revision", lambda m: m["source"].update(revision=1)),
        ("source-file", lambda m: m["source"].update(files={"a": {"size": "1"}})),
        ("tensors", lambda m: m.update(tensors={"a": [1]})),
        ("counts", lambda m: m.update(counts=[])),
    ]
    cases = [
        Case(f"meta-{name}", meta_changed(edit), f"META: {name.replace('-', ' ')}", "E_META")
        for name, edit in edits
    ]
    return [
        *cases,
        Case("meta-list", meta_text(lambda raw: b"[]"), "META is a list", "E_META"),
        Case(
            "dense-pin",
            meta_changed(lambda m: m["dense_header"].update(size=8)),
            "META pins another header of DENS",
            "E_DENSE_SHA256",
        ),
    ]
