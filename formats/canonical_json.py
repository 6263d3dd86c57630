"""JSON with one spelling for one value, so that it can be hashed and compared as bytes.

Keys sorted by code point, no insignificant space, UTF-8 unescaped, integers only, no duplicate
keys, bounded depth and strings. Floats are left out because their shortest spelling is where JSON
writers disagree; a fractional parameter is stored as a string.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any, NoReturn

from formats.constants import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    MAX_JSON_INT,
    MAX_JSON_VALUES,
    MAX_STRING_BYTES,
)
from formats.errors import KexpError, in_file
from formats.repeats import first_repeated

# 2**53 - 1 has 16 digits; one more for the sign. Longer literals are refused before int() is paid.
_MAX_INT_LITERAL = 17

# Strings, to be stepped over; empty and other containers; commas. Possessive, so that a long string
# is matched in constant memory.
_COUNTED = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{](?:[ \t\n\r]*+[\]}])?+|,', re.DOTALL)


def encode(value: Any, *, what: str = "JSON") -> bytes:
    """Return the canonical bytes of `value`; KexpError E_JSON_* if it has none."""
    _check(value, what)
    data = _spell(value, what)
    if has_too_many_values(data):
        raise _too_many_values(what)
    return data


def _spell(value: Any, what: str) -> bytes:
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    data = text.encode("utf-8")
    if len(data) > MAX_JSON_BYTES:
        raise KexpError("E_LIMIT", f"{what} is {len(data)} bytes, at most {MAX_JSON_BYTES}")
    return data


def decode(
    data: bytes, *, what: str, file: str | PurePath | None = None, canonical: bool = True
) -> Any:
    """Return the value spelled by `data`.

    Args:
        what: name of the document in messages.
        canonical: also demand that `data` is the canonical spelling. Off for documents whose
            writer is not ours (a safetensors header); all other rules stay.
    Raises:
        KexpError: E_LIMIT, E_JSON, E_JSON_DUPLICATE_KEY, E_JSON_VALUE or E_JSON_CANONICAL.
    """
    with in_file(file):
        if len(data) > MAX_JSON_BYTES:
            raise KexpError("E_LIMIT", f"{what} is {len(data)} bytes, at most {MAX_JSON_BYTES}")
        if has_too_many_values(data):
            raise _too_many_values(what)
        value = _parse(data, what, canonical)
        _check(value, what)
        if canonical and _spell(value, what) != data:
            raise KexpError("E_JSON_CANONICAL", f"{what} is not in its canonical spelling")
    return value


def has_too_many_values(data: bytes) -> bool:
    """Whether a JSON text has more than MAX_JSON_VALUES values, keys not counted.

    Found without parsing it, which is what must not be paid for: every value but the first follows
    a comma or begins a container. Of a text that is no JSON the answer means nothing.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") < MAX_JSON_VALUES:
        return False
    count = 1
    for found in _COUNTED.finditer(data):
        mark = found.group()
        count += len(mark) == 1  # a comma, or a container that is not empty
        if count > MAX_JSON_VALUES:
            return True
    return False


def _too_many_values(what: str) -> KexpError:
    return KexpError("E_JSON_VALUE", f"{what} has more than {MAX_JSON_VALUES} values")


def _parse(data: bytes, what: str, canonical: bool) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            twice = first_repeated(key for key, _ in items)
            raise KexpError("E_JSON_DUPLICATE_KEY", f"{what} has the key {twice!r} twice")
        return found

    def integer(literal: str) -> int:
        if len(literal) > _MAX_INT_LITERAL:
            raise KexpError("E_JSON_VALUE", f"{what} has an integer of {len(literal)} characters")
        if literal == "-0" and not canonical:  # stock safetensors readers take it for a fraction
            raise KexpError("E_JSON_VALUE", f"{what} has the number -0, wanted 0")
        return int(literal)

    def fraction(literal: str) -> NoReturn:
        raise KexpError(
            "E_JSON_VALUE", f"{what} has the number {literal[:40]}; only integers are allowed"
        )

    def not_json(literal: str) -> NoReturn:
        raise ValueError(f"{literal} is no number of JSON")

    try:
        return json.loads(
            data.decode("utf-8"),
            parse_int=integer,
            parse_float=fraction,
            parse_constant=not_json,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        raise KexpError("E_JSON_VALUE", f"{what} is nested too deeply") from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise KexpError("E_JSON", f"{what} is not JSON: {error}") from None


def _check(value: Any, what: str) -> None:
    """Walk `value` with an explicit stack: its depth is the file's choice, not ours."""
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if type(item) is int and -MAX_JSON_INT <= item <= MAX_JSON_INT:
            continue  # first: a third of what the header of the dense weights consists of
        if isinstance(item, (dict, list)):  # the union is made anew at each turn
            if depth > MAX_JSON_DEPTH:
                raise KexpError("E_JSON_VALUE", f"{what} is nested deeper than {MAX_JSON_DEPTH}")
            if isinstance(item, dict):
                for key in item:
                    _check_string(key, what)
                stack.extend((child, depth + 1) for child in item.values())
            else:
                stack.extend((child, depth + 1) for child in item)
        elif isinstance(item, str):
            _check_string(item, what)
        elif isinstance(item, int):  # bool is an int, and fits
            if abs(item) > MAX_JSON_INT:
                raise KexpError("E_JSON_VALUE", f"{what} has the integer {item}, above 2^53-1")
        elif item is not None:
            raise KexpError(
                "E_JSON_VALUE",
                f"{what} has {item!r} of type {type(item).__name__}; write fractions as strings",
            )


def _check_string(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise KexpError("E_JSON_VALUE", f"{what} has the key {text!r}; keys are strings")
    if text.isascii() and len(text) <= MAX_STRING_BYTES:
        return
    try:
        length = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise KexpError("E_JSON_VALUE", f"{what} has a lone surrogate in a string") from None
    if length > MAX_STRING_BYTES:
        raise KexpError(
            "E_JSON_VALUE", f"{what} has a string of {length} bytes, at most {MAX_STRING_BYTES}"
        )
