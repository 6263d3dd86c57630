"""JSON as text that may break every rule: keys twice, odd spellings, numbers beyond all types."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Literal:
    """Bytes that stand in the text as they are."""

    text: bytes


@dataclass(frozen=True)
class Auto:
    """A value that follows from the files, filled in when the set is put together.

    kind: what of it ("size", "shard_root", ...). name: the file that it is about.
    """

    kind: str
    name: str = ""


class Pairs(list[tuple[str, Any]]):
    """An object as its (key, value) pairs, in order and possibly with a key twice."""


@dataclass(frozen=True)
class Spelling:
    """How a text differs from the canonical one."""

    space: bytes = b""
    keys_as_given: bool = False
    ascii_only: bool = False
    before: bytes = b""
    after: bytes = b""


CANONICAL = Spelling()
SPELLINGS = (
    Spelling(space=b" "),
    Spelling(space=b"\n\t"),
    Spelling(keys_as_given=True),
    Spelling(ascii_only=True),
    Spelling(before=b"\xef\xbb\xbf"),
    Spelling(before=b" "),
    Spelling(after=b"\n"),
    Spelling(after=b"{}"),
    Spelling(after=b"\0"),
)


def parse(text: bytes) -> Any:
    """Return the value of a well-formed text, objects as Pairs; ValueError for other texts.

    Nesting that the functions here could not walk over is refused: they recurse.
    """
    if (
        max(text.count(b"["), text.count(b"{")) > 100_000
        or b"[" * 100 in text
        or b'{"":' * 100 in text
    ):
        raise ValueError("nested too deeply, or too long")
    return json.loads(text, object_pairs_hook=Pairs)


def write(value: Any, fill: Callable[[Auto], Any], spelling: Spelling = CANONICAL) -> bytes:
    """Return the text of `value`; `fill` gives the values of Auto nodes."""
    pieces = [spelling.before]
    _write(value, fill, spelling, pieces)
    return b"".join([*pieces, spelling.after])


def _write(
    value: Any, fill: Callable[[Auto], Any], spelling: Spelling, pieces: list[bytes]
) -> None:
    if isinstance(value, Auto):
        value = fill(value)
    if isinstance(value, Literal):
        pieces.append(value.text)
    elif isinstance(value, Pairs):
        pairs = list(value) if spelling.keys_as_given else sorted(value, key=lambda pair: pair[0])
        pieces.append(b"{")
        for number, (key, child) in enumerate(pairs):
            pieces.append(b"," + spelling.space if number else b"")
            pieces += [_string(key, spelling), b":", spelling.space]
            _write(child, fill, spelling, pieces)
        pieces.append(b"}")
    elif isinstance(value, list):
        pieces.append(b"[")
        for number, child in enumerate(value):
            pieces.append(b"," + spelling.space if number else b"")
            _write(child, fill, spelling, pieces)
        pieces.append(b"]")
    elif isinstance(value, str):
        pieces.append(_string(value, spelling))
    else:
        pieces.append(json.dumps(value).encode())


def _string(text: str, spelling: Spelling) -> bytes:
    # A lone surrogate has no UTF-8; its three bytes are what a careless program would write.
    return json.dumps(text, ensure_ascii=spelling.ascii_only).encode("utf-8", "surrogatepass")


def containers(value: Any) -> Iterator[Any]:
    """Yield every object and list of a document, itself included."""
    if isinstance(value, Pairs):
        yield value
        for _, child in value:
            yield from containers(child)
    elif isinstance(value, list):
        yield value
        for child in value:
            yield from containers(child)


_NUMBERS = (
    *(0, 1, -1, 2, 64, 65, 127, 128, 129, 4095, 4096, 4097, 16384, 16385, 65535, 65536),
    *(2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, -(2**53), 2**63, 2**64 - 1, 2**64, 10**30),
)
_TEXTS = (b"-0", b"1e3", b"1.0", b"0.5", b"1E400", b"NaN", b"-Infinity", b"01", b"+1", b"'", b"")
_STRINGS = ("", "a", "0" * 64, "f" * 64, "F" * 64, "\0", "\x7f", "\ud800", "\U0001f600", "../x")


def odd_value(rng: random.Random) -> Any:
    """Return a value that a rule might have forgotten."""
    kind = rng.randrange(9)
    if kind <= 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return Literal(rng.choice(_TEXTS))
    if kind == 3:
        return rng.choice(_STRINGS)
    if kind == 4:
        return "x" * rng.choice((255, 256, 4095, 4096, 4097, 70_000))
    if kind == 5:
        depth = rng.choice((12, 13, 14, 15, 16, 17, 30, 900, 5000))
        pair = rng.choice(((b"[", b"]"), (b'{"":', b"}")))
        return Literal(pair[0] * depth + b"0" + pair[1] * depth)
    if kind == 6:
        return rng.choice((True, False, None))
    if kind == 7:
        return Literal(b"9" * rng.choice((16, 17, 18, 400, 5000)))
    return rng.choice((Pairs(), [], Pairs([("", 0)]), [0], [[]], [None, None]))


def mutate(document: Any, rng: random.Random) -> Any:
    """Return the document with one node changed; it is changed in place where it can be."""
    places = [each for each in containers(document) if each]
    if not places or rng.random() < 0.03:
        return odd_value(rng)
    place = rng.choice(places)
    index = rng.randrange(len(place))
    action = rng.randrange(8)
    is_object = isinstance(place, Pairs)
    if action <= 2:
        value = odd_value(rng)
        place[index] = (place[index][0], value) if is_object else value
    elif action == 3:
        del place[index]
    elif action == 4:
        place.insert(rng.randrange(len(place) + 1), place[index])
    elif action == 5:
        value = odd_value(rng)
        place.append((rng.choice((*_STRINGS, "zzz")), value) if is_object else value)
    elif action == 6 and is_object:
        place[index] = (rng.choice((*_STRINGS, place[index][0] + "x")), place[index][1])
    else:
        _exchange(document, place, index, rng)
    return document


def _exchange(document: Any, place: Any, index: int, rng: random.Random) -> None:
    """Swap or nudge: values that are right elsewhere, or nearly right here."""
    is_object = isinstance(place, Pairs)
    value = place[index][1] if is_object else place[index]
    if type(value) is int and rng.random() < 0.5:
        value += rng.choice((-1, 1, value, -value - value, 128, -128))
    else:
        other = rng.choice([each for each in containers(document) if each])
        value = rng.choice(other)
        value = value[1] if isinstance(other, Pairs) else value
        if any(each is place for each in containers(value)):  # would contain itself
            value = odd_value(rng)
    place[index] = (place[index][0], value) if is_object else value
