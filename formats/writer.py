"""Writing a set of shards: streamed into a folder of its own, checked, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np

from formats import digests
from formats.buffers import Buffer, as_bytes
from formats.constants import EXPERT_ENTRY_BYTES, HEADER_BYTES
from formats.dense import DenseImage, DenseSpec, plan_image
from formats.durable import flush_folder, flush_to_disk, hash_file, write_at, write_file
from formats.errors import KexpError, os_errors
from formats.expert_index import ENTRY_DTYPE
from formats.layout import Layout, pack_layouts
from formats.manifest import (
    MANIFEST_NAME,
    UNPINNED_FILES,
    FileRecord,
    Manifest,
    is_file_name,
)
from formats.meta import pack_meta
from formats.parallel import map_threads
from formats.plan import SetPlan, ShardPlan, place_sections
from formats.reader import open_set
from formats.sections import BLKS, DENS, EXPT, LAYT, META, Section, required_tags
from formats.superblock import Superblock

_REHASH_BYTES = 4 << 20


class SetWriter:
    """Writes a set of shards; a context manager.

    Everything goes into `<dest>.partial-<pid>`, which `commit` renames to `dest`. Leaving the
    context without a commit, by an exception or Ctrl-C included, removes it. The bytes written
    depend on the arguments alone: no clock, host or path is in them.

    Memory: one block, the index (64 bytes an expert) and whatever the caller passes.
    """

    def __init__(
        self,
        dest: str | Path,
        plan: SetPlan,
        meta: Mapping[str, Any],
        dense_tensors: Sequence[DenseSpec],
        *,
        files: Sequence[Path] = (),
    ) -> None:
        """Prepare; nothing is written before the context is entered.

        Args:
            dest: folder to create; it must not exist.
            plan: from `plan_shards`.
            meta: the metadata document. The writer fills in "dense_header" and each layer's
                "layout".
            dense_tensors: all of them; placed in this order, unaligned ones last.
            files: copied beside the shards under their own names, and pinned in kexp.json.
        Raises:
            KexpError: E_EXISTS, E_META, E_DENSE, E_DTYPE, E_LIMIT, E_FILE_NAME.
        """
        self.dest = Path(dest)
        _refuse_existing(self.dest)
        self.plan = plan
        self.dense_image: DenseImage = plan_image(dense_tensors)
        sections = {
            META: pack_meta(meta, plan.layers, self.dense_image.header),
            LAYT: pack_layouts(plan.layouts),
        }
        self._shards = [
            _ShardWriter(number, plan, sections, self.dense_image.total_bytes)
            for number in range(len(plan.shards))
        ]
        self._files = [Path(file) for file in files]
        self._records: dict[str, FileRecord] = {}
        self._dense = _DenseWriter(self.dense_image, self._shards[0])
        self._pending = _iter_experts(plan)
        self._buffer = bytearray()
        self._buffer_layout: int | None = None
        self._temp = self.dest.with_name(f"{self.dest.name}.partial-{os.getpid()}")
        self._hasher: ThreadPoolExecutor | None = None

    def __enter__(self) -> SetWriter:
        with os_errors(self._temp, "created"):
            self._temp.mkdir(parents=True)
        try:
            self._hasher = ThreadPoolExecutor(1, thread_name_prefix="kexp-sha256")
            for file in self._files:
                self._copy(file)
            for shard in self._shards:
                shard.create(self._temp)
            self._dense.start()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        """Close everything and remove the temporary folder, which is gone after a commit."""
        if self._hasher is not None:
            self._hasher.shutdown()
        for shard in self._shards:
            shard.close()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _copy(self, file: Path) -> None:
        with os_errors(file, "read"):
            data = file.read_bytes()
        self.add_file(file.name, data)

    def add_file(self, name: str, data: bytes) -> None:
        """Put a file beside the shards, pinned in kexp.json unless people are meant to edit it.

        Raises:
            KexpError: E_FILE_NAME if the name is taken, reserved or not a plain component.
        """
        reserved = name == MANIFEST_NAME or name.endswith(".kexp")
        if reserved or not is_file_name(name) or name in self._records:
            raise KexpError("E_FILE_NAME", f"{name!r} is reserved, repeated or not a plain name")
        path = self._temp / name
        with os_errors(path, "written"):
            write_file(path, data)
        self._records[name] = FileRecord(name, len(data), hashlib.sha256(data).hexdigest())

    def write_dense(self, name: str, data: Buffer) -> None:
        """Write a whole dense tensor. Fastest in the order given to the constructor.

        Raises:
            KexpError: E_PLAN if the name is unknown, already written, or the length is wrong.
        """
        view = as_bytes(data)
        if len(view) != self._dense.remaining(name):
            raise KexpError(
                "E_PLAN",
                f"dense tensor {name!r}: {len(view)} bytes given, "
                f"{self._dense.remaining(name)} wanted",
            )
        self._dense.write(name, view)

    def write_dense_chunk(self, name: str, data: Buffer) -> None:
        """Write the next bytes of a dense tensor; KexpError E_PLAN if they are too many."""
        view = as_bytes(data)
        if len(view) > self._dense.remaining(name):
            raise KexpError(
                "E_PLAN",
                f"dense tensor {name!r}: {len(view)} bytes given, "
                f"{self._dense.remaining(name)} left",
            )
        self._dense.write(name, view)

    def write_expert(
        self, layer: int, expert: int, part_buffers: Mapping[tuple[str, str], Buffer]
    ) -> None:
        """Write the next expert: layers ascending, and experts 0, 1, 2 ... in each.

        Args:
            part_buffers: (projection, role) -> the part's bytes, for each part of the layout.
        Raises:
            KexpError: E_PLAN if it is not this expert's turn or the parts are not the layout's.
        """
        shard_no, layout_no, wanted_layer, wanted_expert = next(self._pending, (0, 0, -1, -1))
        if (layer, expert) != (wanted_layer, wanted_expert):
            raise KexpError(
                "E_PLAN",
                f"written out of turn; wanted layer {wanted_layer} expert {wanted_expert}",
                layer=layer,
                expert=expert,
            )
        layout = self.plan.layouts[layout_no]
        self._fill(layout, layout_no, part_buffers, layer, expert)
        payload = memoryview(self._buffer)[: layout.payload_bytes]
        if self._hasher is None:
            raise RuntimeError("write_expert outside the writer's context")
        # SHA-256 is the slowest of the three; hashlib releases the GIL.
        digest = self._hasher.submit(_sha256, payload)
        try:
            shard = self._shards[shard_no]
            shard.write_block(self._buffer)
        finally:
            sha256 = digest.result()
        shard.add_entry(layer, expert, layout_no, zlib.crc32(payload), sha256)

    def _fill(
        self,
        layout: Layout,
        layout_no: int,
        part_buffers: Mapping[tuple[str, str], Buffer],
        layer: int,
        expert: int,
    ) -> None:
        """Lay the parts into the block buffer. Its gaps are zero, since parts never cover them."""
        wanted = {part.key for part in layout.parts}
        if part_buffers.keys() != wanted:
            odd = ", ".join(".".join(key) for key in sorted(part_buffers.keys() ^ wanted))
            raise KexpError(
                "E_PLAN", f"parts are not the layout's: {odd}", layer=layer, expert=expert
            )
        if self._buffer_layout != layout_no:
            self._buffer = bytearray(layout.block_bytes)
            self._buffer_layout = layout_no
        block = memoryview(self._buffer)
        for part in layout.parts:
            view = as_bytes(part_buffers[part.key])
            if len(view) != part.length_bytes:
                raise KexpError(
                    "E_PLAN",
                    f"part {part}: {len(view)} bytes given, {part.length_bytes} wanted",
                    layer=layer,
                    expert=expert,
                )
            block[part.offset_bytes : part.offset_bytes + part.length_bytes] = view

    def commit(self, progress: Callable[[int], None] | None = None) -> Path:
        """Finish: roots, fsync, checks, kexp.json, rename. Return `dest`.

        The shards are read once more, for the SHA-256 of whole files: it cannot be had while
        writing, because the first page of a file depends on all the rest of the set.

        Args:
            progress: called with the number of bytes of each step of that reading.
        Raises:
            KexpError: E_PLAN if something is missing, E_EXISTS, E_IO, or what `open_set` finds.
        """
        missing = next(self._pending, None)
        if missing is not None:
            raise KexpError("E_PLAN", "was not written", layer=missing[2], expert=missing[3])
        with os_errors(self._temp, "written"):
            self._dense.finish()
            roots = [shard.finish() for shard in self._shards]
            root = digests.set_root(roots)
            for shard in self._shards:
                shard.stamp(root)
            manifest = Manifest(
                root.hex(),
                self._hash_shards(progress),
                tuple(each for each in self._records.values() if each.name not in UNPINNED_FILES),
            )
            write_file(self._temp / MANIFEST_NAME, manifest.pack())
            flush_folder(self._temp)
        open_set(self._temp).close()
        _refuse_existing(self.dest)
        with os_errors(self.dest, "created"):
            self._temp.rename(self.dest)
            flush_folder(self.dest.parent)
        return self.dest

    def _hash_shards(self, progress: Callable[[int], None] | None) -> tuple[FileRecord, ...]:
        lock = Lock()

        def record(shard: _ShardWriter, checkpoint: Callable[[], None]) -> FileRecord:
            def step(count: int) -> None:
                checkpoint()
                if progress is not None:
                    with lock:
                        progress(count)

            return FileRecord(shard.path.name, shard.file_bytes, hash_file(shard.path, step))

        return tuple(map_threads(record, self._shards))


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _refuse_existing(dest: Path) -> None:
    if dest.exists() or dest.is_symlink():
        raise KexpError("E_EXISTS", f"{dest} exists: choose another name or remove it")


def _iter_experts(plan: SetPlan) -> Iterator[tuple[int, int, int, int]]:
    """Yield (shard, layout, layer, expert) in the order of writing."""
    for number, shard in enumerate(plan.shards):
        for layer in shard.layers:
            for expert in range(layer.num_experts):
                yield number, layer.layout, layer.layer, expert


class _ShardWriter:
    """One file: sections whose places are known beforehand, filled in any order."""

    def __init__(
        self, number: int, plan: SetPlan, small: Mapping[bytes, bytes], dense_bytes: int
    ) -> None:
        self.number = number
        self.count = len(plan.shards)
        self.plan: ShardPlan = plan.shards[number]
        num_experts = sum(layer.num_experts for layer in self.plan.layers)
        self.small = dict(small)
        self.block_bytes = [layout.block_bytes for layout in plan.layouts]
        self.lengths = {
            META: len(small[META]),
            LAYT: len(small[LAYT]),
            EXPT: EXPERT_ENTRY_BYTES * num_experts,
            DENS: dense_bytes,
            BLKS: self.plan.blocks_bytes,
        }
        self.offsets = place_sections(number, self.count, self.lengths)
        last = required_tags(number, self.count)[-1]
        self.file_bytes = self.offsets[last] + self.lengths[last]
        self.entries = np.zeros(num_experts, dtype=ENTRY_DTYPE)
        self.num_written = 0
        self.next_block = self.offsets.get(BLKS, 0)
        self.dense_crc32 = 0
        self.dense_sha256 = b""
        self.superblock: Superblock | None = None
        self.path = Path(self.plan.name)
        self._fd = -1

    def create(self, folder: Path) -> None:
        """Create the file at its full length; what is never written reads as zeros."""
        self.path = folder / self.plan.name
        with os_errors(self.path, "created"):
            fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(fd, self.file_bytes)
            finally:
                os.close(fd)

    def write(self, data: Buffer | bytes, offset: int) -> None:
        with os_errors(self.path, "written"):
            write_at(self._open(), as_bytes(data), offset)

    def read(self, length: int, offset: int) -> bytes:
        with os_errors(self.path, "read"):
            return os.pread(self._open(), length, offset)

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return self._fd

    def write_block(self, block: bytearray) -> None:
        self.write(block, self.next_block)

    def add_entry(self, layer: int, expert: int, layout: int, crc32: int, sha256: bytes) -> None:
        """Record the block just written; the last one closes the file until the roots are known."""
        row = self.num_written
        length = self.block_bytes[layout]
        self.entries[row] = (layer, expert, layout, 0, self.next_block, length, crc32, 0, sha256)
        self.next_block += length
        self.num_written += 1
        if self.num_written == len(self.entries):
            self.close()

    def finish(self) -> bytes:
        """Write everything but the superblock; return the shard root."""
        self.small[EXPT] = self.entries.tobytes()
        sections = []
        for tag in required_tags(self.number, self.count):
            if tag in self.small:
                raw = self.small[tag]
                self.write(raw, self.offsets[tag])
                crc32, sha256 = zlib.crc32(raw), hashlib.sha256(raw).digest()
            elif tag == DENS:
                crc32, sha256 = self.dense_crc32, self.dense_sha256
            else:
                crc32 = 0
                sha256 = digests.tree_root(bytes(each) for each in self.entries["sha256"])
            length = self.lengths[tag]
            sections.append(Section(tag, self.offsets[tag], length, length, crc32, sha256))
        table = b"".join(section.pack() for section in sections)
        self.write(table, HEADER_BYTES)
        unrooted = Superblock(
            file_bytes=self.file_bytes,
            shard_no=self.number,
            shard_count=self.count,
            section_count=len(sections),
            table_crc32=zlib.crc32(table),
            set_root=bytes(32),
            shard_root=bytes(32),
        )
        root = digests.shard_root(unrooted, sections)
        self.superblock = replace(unrooted, shard_root=root)
        self.close()
        return root

    def stamp(self, set_root: bytes) -> None:
        """Write the superblock and put the file on the disk."""
        if self.superblock is None:
            raise RuntimeError("stamp before finish")
        self.write(replace(self.superblock, set_root=set_root).pack(), 0)
        with os_errors(self.path, "written"):
            flush_to_disk(self._open())
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _DenseWriter:
    """The data of section DENS, hashed in file order whatever the order of writing.

    Bytes that arrive where the hash stands are hashed on the way through. Others, which are the
    few unaligned tensors when the caller keeps its order, are read back at the end.
    """

    def __init__(self, image: DenseImage, shard: _ShardWriter) -> None:
        self._image = image
        self._shard = shard
        self._base = shard.offsets[DENS]
        self._places = dict(zip((spec.name for spec in image.specs), image.offsets, strict=True))
        self._lengths = {spec.name: spec.length_bytes for spec in image.specs}
        self._written = dict.fromkeys(self._places, 0)
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._hashed = 0

    def start(self) -> None:
        self._put(self._image.header, 0)

    def remaining(self, name: str) -> int:
        """Return the bytes of a tensor still to come; KexpError E_PLAN if it is unknown."""
        if name not in self._places:
            raise KexpError("E_PLAN", f"dense tensor {name!r} is not in the plan")
        return self._lengths[name] - self._written[name]

    def write(self, name: str, data: memoryview) -> None:
        self._put(data, self._places[name] + self._written[name])
        self._written[name] += len(data)

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        self._shard.write(data, self._base + offset)
        if offset == self._hashed:
            self._hash(data)

    def _hash(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._hashed += len(data)

    def finish(self) -> None:
        """Hash what is left and hand the digests to the shard; KexpError E_PLAN if incomplete."""
        for name in self._places:
            if self.remaining(name):
                raise KexpError(
                    "E_PLAN", f"dense tensor {name!r}: {self.remaining(name)} bytes not written"
                )
        while self._hashed < self._image.total_bytes:
            wanted = min(_REHASH_BYTES, self._image.total_bytes - self._hashed)
            data = self._shard.read(wanted, self._base + self._hashed)
            if not data:
                raise KexpError("E_IO", "ends early while being hashed", file=self._shard.path)
            self._hash(data)
        self._shard.dense_crc32 = self._crc32
        self._shard.dense_sha256 = self._sha256.digest()
