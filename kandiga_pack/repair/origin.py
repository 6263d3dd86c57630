"""Where right bytes come from, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from formats import Layout
from formats.manifest import FileRecord, Manifest
from formats.sections import Section
from kandiga_pack.repair.damage import Block


@dataclass(frozen=True)
class HeadParts:
    """What a checkpoint knows of a head: section LAYT, the header of section DENS, and what gives
    (layer, expert, layout) -> payload."""

    layouts: bytes
    dense_header: bytes
    payload: Callable[[int, int, Layout], bytes] | None


class Origin(Protocol):
    """Gives bytes that are compared with the recorded digests before anything is written.

    Each method raises PackError, KexpError or HubError when it cannot give them.
    """

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def num_bytes(self) -> int:
        """Bytes read from it so far."""

    @property
    def num_requests(self) -> int:
        """Requests made to the Hub so far."""

    def check(self, manifest: Manifest) -> None:
        """Raise PackError if it can be seen already that this is another model."""

    def manifest(self) -> bytes:
        """Return kexp.json."""

    def head(self, name: str) -> bytes:
        """Return all of a shard that precedes its weights."""

    def head_parts(self) -> HeadParts | None:
        """Return what it knows of a head; None when `head` gives all of it anyway."""

    def block(self, shard_name: str, block: Block) -> bytes:
        """Return the payload of an expert."""

    def dense(self, shard_name: str, section: Section) -> Iterator[bytes]:
        """Yield section DENS in order."""

    def file(self, record: FileRecord) -> bytes:
        """Return a file that stands beside the shards."""

    def close(self) -> None:
        """Release files."""
