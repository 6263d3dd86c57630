"""A Hub that has one set, and the set's index fetched from it, next to the set on this machine."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from formats import KexpError, open_set
from formats.hub import HubError, HubId
from formats.remote_index import fetch_index

HUB_ID = HubId("someone/fuzzed", None)
# The first guess, a megabyte, and the largest sections of a head; three requests, pieces of 8 MiB.
MAX_HEAD_BYTES = (16 + 9 + 64 + 16 + 1 + 1) << 20
MAX_REQUESTS = 24


class FuzzedHub:
    """In place of HubFiles. sizes: of files that are longer than their bytes here."""

    def __init__(self, files: Mapping[str, bytes], sizes: Mapping[str, int]) -> None:
        self.hub_id = HUB_ID
        self._files = files
        self._sizes = sizes
        self.asked: dict[str, list[int]] = {}

    def size_bytes(self, name: str) -> int:
        return max(self._sizes.get(name, 0), len(self._files[name]))

    def read(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        if name not in self._files:
            raise HubError(errno.ENOENT, f"has no {name}", HUB_ID)
        wanted = max(0, min(length_bytes, self.size_bytes(name) - offset_bytes))
        self.asked.setdefault(name, []).append(wanted)
        return self._files[name][offset_bytes : offset_bytes + wanted].ljust(wanted, b"\0")

    def check(self) -> None:
        """Assert that no more was asked for than the limits of a head allow."""
        for name, lengths in self.asked.items():
            assert sum(lengths) <= MAX_HEAD_BYTES, f"{name}: {sum(lengths)} bytes fetched"
            assert len(lengths) <= MAX_REQUESTS, f"{name}: {len(lengths)} requests"


@contextlib.contextmanager
def both_ways(
    files: Mapping[str, bytes], base: Path
) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Yield (open the set here, fetch its index and open that), both to be judged."""
    here, there = (base.with_name(f"{base.name}-{name}") for name in ("here", "there"))
    shards = json.loads(files["kexp.json"])["shards"]
    # Longer ones no file system here has: the reader refuses them before, or nothing can be said.
    sizes = {each["name"]: each["size"] for each in shards if each["size"] < 1 << 40}
    listed = {name: files[name] for name in ("kexp.json", *sizes) if name in files}

    def open_here() -> None:
        open_set(here).close()

    def open_there() -> None:
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir()
        hub: Any = FuzzedHub(listed, sizes)
        try:
            fetch_index(hub, there)
        except HubError as error:
            if error.errno == errno.ENOENT:
                raise KexpError("E_FILE_MISSING", "is not there") from error
            raise
        finally:
            hub.check()
        open_set(there).close()

    here.mkdir()
    try:
        for name, data in listed.items():
            with (here / name).open("wb") as stream:
                stream.write(data)
                stream.truncate(max(len(data), sizes.get(name, 0)))
        yield open_here, open_there
    finally:
        shutil.rmtree(here, ignore_errors=True)
        shutil.rmtree(there, ignore_errors=True)
