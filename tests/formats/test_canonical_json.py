"""One spelling for one value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import KexpError
from formats.canonical_json import decode, encode

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8), children, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(values)
def test_what_is_encoded_is_decoded(value: object) -> None:
    data = encode(value)
    assert decode(data, what="value") == value
    assert json.loads(data) == value


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0123456789-truefalsn\\u ', max_size=40))
def test_any_bytes_decode_or_are_refused(data: bytes | str) -> None:
    raw = data.encode() if isinstance(data, str) else data
    try:
        value = decode(raw, what="value")
    except KexpError:
        return
    assert encode(value) == raw


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ({"b": 1, "a": [True, None]}, b'{"a":[true,null],"b":1}'),
        ({"é": "é", "z": "z"}, '{"z":"z","é":"é"}'.encode()),
        ({"\uffff": 1, "\U0001f600": 2}, '{"\uffff":1,"\U0001f600":2}'.encode()),
        ('a"\\/\b\f\n\r\t\x01\x1f\x7f', b'"a\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f"'),
        (-(2**53) + 1, b"-9007199254740991"),
    ],
)
def test_spellings(value: object, data: bytes) -> None:
    assert encode(value) == data
    assert decode(data, what="value") == value


@pytest.mark.parametrize(
    "value", [1.0, float("nan"), 2**53, {1: 2}, "\ud800", {"\udfff": 1}, "x" * 4097, b"", {1, 2}]
)
def test_values_without_a_spelling(value: object) -> None:
    with pytest.raises(KexpError) as caught:
        encode(value)
    assert caught.value.code == "E_JSON_VALUE"


def test_the_deepest() -> None:
    assert decode(b"[" * 16 + b"]" * 16, what="value") is not None
    for depth in (17, 100_000):
        with pytest.raises(KexpError, match="E_JSON_VALUE"):
            decode(b"[" * depth + b"]" * depth, what="value")


def test_size_is_compared_before_parsing() -> None:
    with pytest.raises(KexpError, match="E_LIMIT"):
        decode(b" " * ((16 << 20) + 1), what="value")


def test_a_key_repeated_among_many_is_found_in_time() -> None:
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    with pytest.raises(KexpError, match="'199999' twice"):
        decode(f'{{{keys},"199999":1}}'.encode(), what="value")
