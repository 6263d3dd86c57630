"""kexp.json: which files make up a set, and what tells that they are the ones meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from formats import canonical_json
from formats.constants import MAX_SHARDS, VERSION_MAJOR
from formats.errors import KexpError

MANIFEST_NAME = "kexp.json"

# People edit these on the Hub after publishing; they are copied but not pinned.
UNPINNED_FILES = frozenset({"README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"})

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,254}\Z")
HEX_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


# A repository host would count the parameters of *.safetensors as the model's.
_RESERVED_SUFFIXES = (".kexp", ".safetensors")


@dataclass(frozen=True)
class ShardRecord:
    """A shard of the set: its name in the folder, its size, its shard root in hexadecimal.

    The root, not a digest of the file: it covers the same bytes, and the writer has it without
    reading gigabytes a second time.
    """

    name: str
    size_bytes: int
    shard_root: str


@dataclass(frozen=True)
class FileRecord:
    """A file beside the shards: its name in the folder, its size, its SHA-256 in hexadecimal."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """set_root in hexadecimal; shards in order; the pinned files beside them."""

    set_root: str
    shards: tuple[ShardRecord, ...]
    files: tuple[FileRecord, ...]

    def pack(self) -> bytes:
        """Return the bytes of kexp.json."""
        document = {
            "files": [
                {"name": record.name, "sha256": record.sha256, "size": record.size_bytes}
                for record in sorted(self.files, key=_by_name)
            ],
            "format": "kexp",
            "set_root": self.set_root,
            "shards": [
                {
                    "name": record.name,
                    "shard_root": record.shard_root,
                    "size": record.size_bytes,
                }
                for record in self.shards
            ],
            "version": VERSION_MAJOR,
        }
        return canonical_json.encode(document, what=MANIFEST_NAME)


def shard_file_name(shard_no: int, shard_count: int) -> str:
    """Return the file name of a shard; `shard_no` counts from 0, the name from 1.

    >>> shard_file_name(0, 1), shard_file_name(2, 9)
    ('model.kexp', 'model-00003-of-00009.kexp')
    """
    if shard_count == 1:
        return "model.kexp"
    return f"model-{shard_no + 1:05d}-of-{shard_count:05d}.kexp"


def is_file_name(name: str) -> bool:
    """Whether a file beside the shards may have this name: one plain component, not reserved."""
    reserved = name == MANIFEST_NAME or name.endswith(_RESERVED_SUFFIXES)
    return _FILE_NAME.match(name) is not None and not reserved


def _by_name(record: FileRecord) -> str:
    return record.name


def parse_manifest(data: bytes, *, file: PurePath) -> Manifest:
    """Return the manifest spelled by `data`; KexpError E_MANIFEST, E_VERSION or E_JSON_*."""

    def wrong(message: str) -> KexpError:
        return KexpError("E_MANIFEST", message, file=file)

    document = canonical_json.decode(data, what=MANIFEST_NAME, file=file)
    if not isinstance(document, dict) or document.get("format") != "kexp":
        raise wrong("wanted an object with format 'kexp'")
    version = document.get("version")
    if type(version) is not int:
        raise wrong(f"version is {version!r}, wanted an integer")
    if version != VERSION_MAJOR:  # before the keys: another version may have others
        message = f"format version {version}, this reader knows {VERSION_MAJOR}"
        raise KexpError("E_VERSION", message, file=file)
    keys = {"files", "format", "set_root", "shards", "version"}
    if document.keys() != keys:
        raise wrong(f"wanted the keys {', '.join(sorted(keys))}")
    set_root = document["set_root"]
    if not isinstance(set_root, str) or not HEX_DIGEST.match(set_root):
        raise wrong("set_root is not 64 lower-case hexadecimal digits")
    shards = tuple(
        ShardRecord(*record) for record in _parse_records(document["shards"], "shard_root", file)
    )
    files = tuple(
        FileRecord(*record) for record in _parse_records(document["files"], "sha256", file)
    )
    if not 1 <= len(shards) <= MAX_SHARDS:
        raise wrong(f"{len(shards)} shards, wanted 1..{MAX_SHARDS}")
    for number, shard in enumerate(shards):
        wanted = shard_file_name(number, len(shards))
        if shard.name != wanted:
            raise wrong(f"shard {number + 1} is called {shard.name!r}, wanted {wanted}")
    names = [record.name for record in files]
    for name in names:
        if not is_file_name(name) or name in UNPINNED_FILES:
            raise wrong(f"{name!r} is not a plain file name, or is reserved")
    if names != sorted(set(names)):
        raise wrong("files are not in ascending order of their names")
    return Manifest(set_root, shards, files)


def _parse_records(items: Any, digest_key: str, file: PurePath) -> Iterator[tuple[str, int, str]]:
    """Yield (name, size, digest) of each record in a list of the manifest."""

    def wrong(message: str) -> KexpError:
        return KexpError("E_MANIFEST", message, file=file)

    if not isinstance(items, list):
        raise wrong("shards and files wanted as lists")
    for item in items:
        if not isinstance(item, dict) or item.keys() != {"name", "size", digest_key}:
            raise wrong(f"a record wanted with name, size, {digest_key}")
        name, size, digest = item["name"], item["size"], item[digest_key]
        if not isinstance(name, str):
            raise wrong(f"a name is {name!r}")
        if not isinstance(digest, str) or not HEX_DIGEST.match(digest):
            raise wrong(f"{digest_key} of {name!r} is not 64 lower-case hexadecimal digits")
        if type(size) is not int or size < 0:
            raise wrong(f"size of {name!r} is {size!r}")
        yield name, size, digest
