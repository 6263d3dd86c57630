"""Writing the dense weights, hashed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from formats.crc32 import crc32
from formats.dense import DenseImage
from formats.errors import KexpError
from formats.sections import DENS
from formats.shard_writer import ShardWriter

_REHASH_BYTES = 4 << 20


class DenseWriter:
    """The data of section DENS, hashed in file order whatever the order of writing.

    Bytes that arrive where the hash stands are hashed on the way through. Others, which are the
    few unaligned tensors when the caller keeps its order, are read back at the end.
    """

    def __init__(self, image: DenseImage, shard: ShardWriter) -> None:
        self._image = image
        self._shard = shard
        self._base = shard.offsets[DENS]
        self._places = dict(zip((spec.name for spec in image.specs), image.offsets, strict=True))
        self._lengths = {spec.name: spec.length_bytes for spec in image.specs}
        self._written = dict.fromkeys(self._places, 0)
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._hashed = 0
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="kexp-dense-sha256")

    def start(self, done: Collection[str] = ()) -> None:
        """Write the header, and take over the tensors that are there from an earlier time."""
        self._put(self._image.header, 0)
        for name in done:
            self._written[name] = self._lengths[name]
        for spec in self._image.specs:
            if spec.name not in done:
                break
            self._read_back(self._places[spec.name] + spec.length_bytes)

    def remaining(self, name: str) -> int:
        """Return the bytes of a tensor still to come; KexpError E_PLAN if it is unknown."""
        if name not in self._places:
            raise KexpError("E_PLAN", f"dense tensor {name!r} is not in the plan")
        return self._lengths[name] - self._written[name]

    def write(self, name: str, data: memoryview) -> None:
        """Write the next bytes of a tensor; KexpError E_PLAN if there are more than it has."""
        if len(data) > self.remaining(name):
            raise KexpError(
                "E_PLAN",
                f"dense tensor {name!r}: {len(data)} bytes given, {self.remaining(name)} left",
            )
        self._put(data, self._places[name] + self._written[name])
        self._written[name] += len(data)

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        if offset != self._hashed:
            self._shard.write(data, self._base + offset)
            return
        hashing = self._hasher.submit(self._hash, data)
        try:
            self._shard.write(data, self._base + offset)
        finally:
            hashing.result()  # the data are the caller's again next

    def _hash(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._crc32 = crc32(data, self._crc32)
        self._hashed += len(data)

    def _read_back(self, end: int) -> None:
        """Hash what was written, up to `end`."""
        while self._hashed < end:
            data = self._shard.read(
                min(_REHASH_BYTES, end - self._hashed), self._base + self._hashed
            )
            if not data:
                raise KexpError("E_IO", "ends early while being hashed", file=self._shard.path)
            self._hash(data)

    def finish(self) -> None:
        """Hash what is left and hand the digests to the shard; KexpError E_PLAN if incomplete."""
        for name in self._places:
            if self.remaining(name):
                raise KexpError(
                    "E_PLAN", f"dense tensor {name!r}: {self.remaining(name)} bytes not written"
                )
        self._read_back(self._image.total_bytes)
        self._shard.dense_crc32 = self._crc32
        self._shard.dense_sha256 = self._sha256.digest()

    def close(self) -> None:
        """Stop the thread."""
        self._hasher.shutdown()
