"""Renders kexp-v1.fields.toml into the tables of kexp-v1.md and into kexp_v1.h.

    python -m specs.make_tables            rewrite both
    python -m specs.make_tables --check    change nothing, exit 1 if one is not up to date

A table stands in the text between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from specs.fields import Fields, Structure, load_fields

FOLDER = Path(__file__).resolve().parent
TEXT_FILE = FOLDER / "kexp-v1.md"
HEADER_FILE = FOLDER / "kexp_v1.h"
DUMPED_VECTOR = FOLDER / "vectors" / "valid" / "single" / "model.kexp"

_MARKED = re.compile(r"(<!-- table ([a-z_0-9]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_text(text: str, fields: Fields) -> str:
    """Return `text` with every marked table made anew."""
    tables = _tables(fields)

    def table(match: re.Match[str]) -> str:
        return match[1] + "\n" + tables[match[2]]() + "\n" + match[3]

    return _MARKED.sub(table, text)


def _tables(fields: Fields) -> dict[str, Callable[[], str]]:
    tables: dict[str, Callable[[], str]] = {
        "dtypes": lambda: _dtype_table(fields),
        "codes": lambda: _codes_table(fields),
        "modes": lambda: _modes_table(fields),
        "sections": lambda: _sections_table(fields),
        "limits": lambda: _limits_table(fields),
        "errors": lambda: _errors_table(fields),
        "against": lambda: _rows(
            ("code", "when"), ((each["code"], each["when"]) for each in fields.raw["against"])
        ),
        "dump": lambda: _dump(fields),
    }
    for structure in fields.structures.values():
        tables[structure.name] = lambda each=structure: _structure_table(each)  # type: ignore[misc]
    for item in fields.raw["objects"]:
        tables[item["name"]] = lambda each=item: _object_table(each["keys"])  # type: ignore[misc]
    return tables


def _rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _structure_table(structure: Structure) -> str:
    return _rows(
        ("offset", "field", "type", "rule", "else"),
        (
            (field.offset_bytes, field.name, field.type, field.rule, field.code)
            for field in structure.fields
        ),
    )


def _object_table(keys: Sequence[dict[str, object]]) -> str:
    return _rows(
        ("key", "", "value"),
        ((f"`{k['key']}`", "optional" if k.get("optional") else "", k["value"]) for k in keys),
    )


def _dtype_table(fields: Fields) -> str:
    return _rows(("code", "name", "bits"), fields.dtypes)


def _codes_table(fields: Fields) -> str:
    return _rows(
        ("field", "values"),
        (
            (group, ", ".join(f"{number} {name}" for name, number in names.items()))
            for group, names in fields.codes.items()
            if group != "codec"
        ),
    )


def _modes_table(fields: Fields) -> str:
    def several(items: Sequence[object]) -> str:
        return " ".join(str(item) for item in items)

    return _rows(
        ("mode", "bits", "group_size", "parts required", "parts allowed", "dtype of scales"),
        (
            (
                mode["name"],
                several(mode["bits"]),
                several(mode["group_size"]),
                "weight " + several(mode["required"]),
                several(["bias", *mode["optional"]]),
                several(mode["scales"]),
            )
            for mode in fields.raw["modes"]
        ),
    )


def _sections_table(fields: Fields) -> str:
    return _rows(
        ("tag", "begins at a multiple of", "codec", "raw_len at most", "what"),
        (
            (
                section["tag"],
                section["align"],
                "0" if section["raw"] else "0 or 1",
                section["limit"] or "",
                section["what"],
            )
            for section in fields.raw["sections"]
        ),
    )


def _limits_table(fields: Fields) -> str:
    return _rows(
        ("what", "at most", "else"),
        ((limit["what"], limit["max"], limit["code"]) for limit in fields.raw["limits"]),
    )


def _errors_table(fields: Fields) -> str:
    return _rows(
        ("code", "seen", "when"),
        ((code, error["level"], error["when"]) for code, error in fields.errors.items()),
    )


def _dump(fields: Fields) -> str:
    """Return the annotated dump of a vector: everything but its zeros."""
    data = DUMPED_VECTOR.read_bytes()
    lines: list[str] = []

    def show(begin: int, end: int, note: str) -> None:
        for at in range(begin, end, 16):
            chunk = data[at : min(at + 16, end)]
            lines.append(f"{at:06x}  {chunk.hex(' '):<47}  {note if at == begin else ''}".rstrip())

    def structure(name: str, begin: int, title: str) -> dict[str, int | bytes]:
        layout = fields.structures[name]
        lines.append(f"-- {title}")
        for field in layout.fields:
            if field.size_bytes > 64:
                lines.append(f"{begin + field.offset_bytes:06x}  {field.size_bytes} zeros")
            else:
                at = begin + field.offset_bytes
                show(at, at + field.size_bytes, field.name)
        return layout.unpack(data, begin)

    count = structure("superblock", 0, "superblock")["section_count"]
    assert isinstance(count, int)
    found: dict[str, tuple[int, int]] = {}
    for index in range(count):
        at = 4096 + 80 * index
        tag = data[at : at + 4].decode()
        entry = structure("section_entry", at, f"section table, entry {index}: {tag}")
        found[tag] = int(entry["offset"]), int(entry["stored_len"])
    for tag in ("META", "DENS"):
        begin, length = found[tag]
        lines.append(f"-- {tag}, {length} bytes")
        show(begin, begin + min(length, 48), "first bytes" if length > 48 else "")
    begin, _ = found["LAYT"]
    structure("layout_section_header", begin, "LAYT")
    layout = structure("layout_header", begin + 16, "LAYT, layout 0")
    for part in range(int(layout["part_count"])):
        structure("part", begin + 48 + 32 * part, f"LAYT, layout 0, part {part}")
    begin, length = found["EXPT"]
    for row in range(length // 64):
        entry = structure("expert_entry", begin + 64 * row, f"EXPT, entry {row}")
        at = int(entry["offset"])
        lines.append(f"-- BLKS, block {row}: parts at 0 and 128, zeros to {at + 16384:06x}")
        show(at, at + 4, "fc1.weight")
        show(at + 128, at + 132, "fc2.weight")
    return "```\n" + "\n".join(lines) + "\n```\n"


def render_header(fields: Fields) -> str:
    """Return kexp_v1.h: layout only, held by static_assert."""
    lines = [
        "/* .kexp version 1: the layout of its structures, nothing else. Made from",
        " * kexp-v1.fields.toml by make_tables.py; kexp-v1.md says what the fields mean.",
        " * Little-endian: on another machine each field must be converted. */",
        "",
        "#ifndef KEXP_V1_H",
        "#define KEXP_V1_H",
        "",
        "#include <assert.h>",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
    ]
    constants = fields.constants
    for key in ("magic", "zstd_magic"):
        escaped = "".join(f"\\x{byte:02x}" for byte in bytes.fromhex(constants.pop(key)))
        lines.append(f'#define KEXP_{key.upper()} "{escaped}"')
    lines += [f"#define KEXP_{key.upper()} {value}" for key, value in constants.items()]
    lines.append("")
    lines += [f"#define KEXP_MAX_{name.upper()} {value}" for name, value in fields.limits.items()]
    for group, names in fields.codes.items():
        lines += ["", f"enum kexp_{group} {{"]
        lines += [f"    KEXP_{group.upper()}_{n.upper()} = {v}," for n, v in names.items()]
        lines.append("};")
    lines += ["", "enum kexp_dtype {"]
    lines += [f"    KEXP_DTYPE_{name.upper()} = {code}," for code, name, _ in fields.dtypes]
    lines.append("};")
    for structure in fields.structures.values():
        lines += ["", *_c_structure(structure)]
    return "\n".join([*lines, "", "#endif", ""])


def _c_structure(structure: Structure) -> list[str]:
    name = f"struct kexp_{structure.name}"
    lines = [f"{name} {{"]
    for field in structure.fields:
        array = f"[{field.count}]" if field.count > 1 else ""
        kind = {"u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t"}
        lines.append(f"    {kind[field.element]} {field.name}{array};")
    lines.append("};")
    lines.append(f'static_assert(sizeof({name}) == {structure.size_bytes}, "size");')
    lines += [
        f'static_assert(offsetof({name}, {field.name}) == {field.offset_bytes}, "{field.name}");'
        for field in structure.fields
    ]
    return lines


def main(arguments: Sequence[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m specs.make_tables [--check]", file=sys.stderr)
        return 2
    fields = load_fields()
    wanted = {
        TEXT_FILE: render_text(TEXT_FILE.read_text(encoding="utf-8"), fields),
        HEADER_FILE: render_header(fields),
    }
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if arguments:
        for path in stale:
            print(f"{path.name} is not up to date: run python -m specs.make_tables")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
