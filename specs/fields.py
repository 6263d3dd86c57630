"""kexp-v1.fields.toml, loaded: the tables of the specification for programs and tests."""

from __future__ import annotations

import struct
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS_FILE = Path(__file__).with_name("kexp-v1.fields.toml")

_INTEGERS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


@dataclass(frozen=True)
class Field:
    """A field of a structure: offset_bytes from its start, count elements of `element`."""

    name: str
    offset_bytes: int
    element: str
    count: int
    rule: str
    code: str

    @property
    def type(self) -> str:
        """As the text writes it: "u32", "u8[32]"."""
        return self.element if self.count == 1 else f"{self.element}[{self.count}]"

    @property
    def size_bytes(self) -> int:
        return struct.calcsize("<" + _INTEGERS[self.element]) * self.count

    @property
    def format(self) -> str:
        """For the struct module; an array of bytes is one bytes object."""
        return _INTEGERS[self.element] if self.count == 1 else f"{self.count}s"


@dataclass(frozen=True)
class Structure:
    """A structure of fixed size whose fields follow one another without holes."""

    name: str
    size_bytes: int
    fields: tuple[Field, ...]

    @property
    def struct(self) -> struct.Struct:
        return struct.Struct("<" + "".join(field.format for field in self.fields))

    def unpack(self, data: bytes, offset: int = 0) -> dict[str, Any]:
        """Return field name -> value (int, or bytes for an array)."""
        values = self.struct.unpack_from(data, offset)
        return dict(zip((field.name for field in self.fields), values, strict=True))

    def __getitem__(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)


@dataclass(frozen=True)
class Fields:
    """The whole file. `raw` is the parsed TOML, for what has no class of its own."""

    raw: dict[str, Any]
    structures: dict[str, Structure]

    @property
    def constants(self) -> dict[str, Any]:
        return dict(self.raw["constants"])

    @property
    def codes(self) -> dict[str, dict[str, int]]:
        """Group ("codec", "projection", "role", "mode") -> name -> number in the file."""
        return {group: dict(names) for group, names in self.raw["codes"].items()}

    @property
    def dtypes(self) -> list[tuple[int, str, int]]:
        """(code, name, bits of an element), ascending by code."""
        return [(code, name, bits) for code, name, bits in self.raw["dtypes"]["table"]]

    @property
    def limits(self) -> dict[str, int]:
        return {limit["name"]: limit["max"] for limit in self.raw["limits"]}

    @property
    def errors(self) -> dict[str, dict[str, str]]:
        """Error code -> cause ("file", "system", "caller"), level, when."""
        return {error["code"]: error for error in self.raw["errors"]}


def load_fields() -> Fields:
    """Return the facts of .kexp version 1.

    >>> load_fields().structures["expert_entry"]["crc32"].offset_bytes
    24
    """
    with FIELDS_FILE.open("rb") as stream:
        raw = tomllib.load(stream)
    structures = {each["name"]: _structure(each) for each in raw["structs"]}
    return Fields(raw, structures)


def _structure(raw: dict[str, Any]) -> Structure:
    fields = tuple(_field(each) for each in raw["fields"])
    end = 0
    for field in fields:
        if field.offset_bytes != end:
            raise ValueError(f"{raw['name']}.{field.name} at {field.offset_bytes}, wanted {end}")
        end += field.size_bytes
    if end != raw["size"]:
        raise ValueError(f"{raw['name']} ends at {end}, its size is {raw['size']}")
    return Structure(raw["name"], raw["size"], fields)


def _field(raw: dict[str, Any]) -> Field:
    element, _, count = raw["type"].partition("[")
    return Field(
        raw["name"],
        raw["offset"],
        element,
        int(count.rstrip("]") or 1),
        raw["rule"],
        raw["code"],
    )
