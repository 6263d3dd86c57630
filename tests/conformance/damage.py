"""A one-shard set that can be changed field by field, with every checksum put right afterwards."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from containers import Body, install, merkle, rebuild, reseal, section_bodies, section_entries


class Container:
    """The shard of the set in `folder`, in memory until `save`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = bytearray((folder / "model.kexp").read_bytes())

    def at(self, tag: str) -> int:
        """Where the section begins."""
        return section_entries(self.data)[tag][1]

    def row(self, tag: str) -> int:
        """Where the section's row of the table begins."""
        return section_entries(self.data)[tag][0]

    def put(self, form: str, at: int, value: object) -> None:
        struct.pack_into(form, self.data, at, value)

    def get(self, form: str, at: int) -> Any:
        return struct.unpack_from(form, self.data, at)[0]

    def raw(self, tag: str) -> bytes:
        return next(body.raw for body in section_bodies(self.data) if body.tag == tag)

    def replace(self, tag: str, raw: bytes, stored: bytes | None = None) -> None:
        """Give a section other bytes; the blocks stay where they are."""
        bodies = [
            Body(tag, raw, stored) if body.tag == tag else body
            for body in section_bodies(self.data)
        ]
        self.data = rebuild(self.data, bodies)

    def append(self, tag: str, raw: bytes, stored: bytes | None = None) -> None:
        """Add a section at the end."""
        self.data = rebuild(self.data, [*section_bodies(self.data), Body(tag, raw, stored)])

    def change_meta(self, change: Callable[[dict[str, Any]], object]) -> None:
        meta = json.loads(self.raw("META"))
        change(meta)
        self.replace("META", canonical(meta))

    def change_dense(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the header of DENS, and the size and digest that META has of it."""
        raw = self.raw("DENS")
        (length,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8 : 8 + length])
        change(header)
        self.replace_dense_header(json.dumps(header, separators=(",", ":")).encode())

    def replace_dense_header(self, text: bytes) -> None:
        raw = self.raw("DENS")
        (length,) = struct.unpack_from("<Q", raw)
        head = struct.pack("<Q", len(text)) + text
        self.replace("DENS", head + raw[8 + length :])
        pin = {"sha256": hashlib.sha256(head).hexdigest(), "size": len(head)}
        self.change_meta(lambda meta: meta.update(dense_header=pin))

    def seal(self) -> None:
        """Put right all checksums and roots."""
        for tag, (row, offset, length) in section_entries(self.data).items():
            if tag == "BLKS":
                index = self.raw("EXPT")
                leaves = [index[at + 32 : at + 64] for at in range(0, len(index) // 64 * 64, 64)]
                self.data[row + 40 : row + 72] = merkle(leaves)
            elif self.get("<I", row + 4) == 0:
                raw = bytes(self.data[offset : offset + length])
                self.put("<I", row + 32, zlib.crc32(raw))
                self.data[row + 40 : row + 72] = hashlib.sha256(raw).digest()
        reseal(self.data, sections=False)

    def save(self) -> None:
        install(self.folder, self.data)


def canonical(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "kexp.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_bytes(canonical(manifest))
