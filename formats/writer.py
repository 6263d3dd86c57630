"""Writing a set of shards: streamed into a folder of its own, checked, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from formats import digests
from formats.buffers import Buffer, as_bytes
from formats.dense import DenseImage, DenseSpec, plan_image
from formats.dense_writer import DenseWriter
from formats.durable import flush_folder, write_file
from formats.errors import KexpError, os_errors
from formats.layout import Layout
from formats.layout_section import pack_layouts
from formats.manifest import (
    MANIFEST_NAME,
    UNPINNED_FILES,
    FileRecord,
    Manifest,
    is_file_name,
)
from formats.meta import pack_meta
from formats.plan import SetPlan
from formats.reader import open_set
from formats.sections import LAYT, META
from formats.shard_writer import ShardWriter


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
            ShardWriter(number, plan, sections, self.dense_image.total_bytes)
            for number in range(len(plan.shards))
        ]
        self._files = [Path(file) for file in files]
        self._records: dict[str, FileRecord] = {}
        self._dense = DenseWriter(self.dense_image, self._shards[0])
        self._turns = _iter_turns(plan)
        self._turn = next(self._turns, None)
        self._buffer = bytearray()
        self._buffer_layout: int | None = None
        self._temp = self.dest.with_name(f"{self.dest.name}.partial-{os.getpid()}")
        self._hasher: ThreadPoolExecutor | None = None

    def replace_meta(self, meta: Mapping[str, Any]) -> None:
        """Put another metadata document in the place of the first, before `commit`.

        For digests that are known only when everything has been read. It must take as many bytes
        as the first did, since the places of all sections follow from it.

        Raises:
            KexpError: E_META if it is of another length or contradicts the plan.
        """
        packed = pack_meta(meta, self.plan.layers, self.dense_image.header)
        sections = self._shards[0].small
        if len(packed) != len(sections[META]):
            raise KexpError(
                "E_META", f"metadata: {len(packed)} bytes, wanted {len(sections[META])} as planned"
            )
        sections[META] = packed

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
        if not is_file_name(name) or name in self._records:
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
        self._dense.write(name, as_bytes(data))

    def write_expert(
        self, layer: int, expert: int, part_buffers: Mapping[tuple[str, str], Buffer]
    ) -> None:
        """Write the next expert: layers ascending, and experts 0, 1, 2 ... in each.

        Args:
            part_buffers: (projection, role) -> the part's bytes, for each part of the layout.
        Raises:
            KexpError: E_PLAN if it is not this expert's turn or the parts are not the layout's.
        """
        if self._hasher is None:
            raise RuntimeError("write_expert outside the writer's context")
        turn = self._turn
        if turn is None or (layer, expert) != (turn.layer, turn.expert):
            wanted = "none" if turn is None else f"layer {turn.layer} expert {turn.expert}"
            raise KexpError(
                "E_PLAN", f"written out of turn; wanted {wanted}", layer=layer, expert=expert
            )
        layout = self.plan.layouts[turn.layout]
        self._fill(layout, turn.layout, part_buffers, layer, expert)
        payload = memoryview(self._buffer)[: layout.payload_bytes]
        # SHA-256 takes longer than the other two together; hashlib releases the GIL.
        digest = self._hasher.submit(_sha256, payload)
        shard = self._shards[turn.shard]
        try:
            crc32 = zlib.crc32(payload)
            shard.write_block(self._buffer)
        finally:
            sha256 = digest.result()  # the buffer is filled again next
        shard.add_entry(layer, expert, turn.layout, crc32, sha256)
        self._turn = next(self._turns, None)

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

    def commit(self) -> Path:
        """Finish: roots, fsync, checks, kexp.json, rename. Return `dest`.

        Raises:
            KexpError: E_PLAN if something is missing, E_EXISTS, E_IO, or what `open_set` finds.
        """
        turn = self._turn
        if turn is not None:
            raise KexpError("E_PLAN", "was not written", layer=turn.layer, expert=turn.expert)
        with os_errors(self._temp, "written"):
            self._dense.finish()
            roots = [shard.finish() for shard in self._shards]
            root = digests.set_root(roots)
            for shard in self._shards:
                shard.stamp(root)
            manifest = Manifest(
                root.hex(),
                tuple(shard.record() for shard in self._shards),
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


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _refuse_existing(dest: Path) -> None:
    if dest.exists() or dest.is_symlink():
        raise KexpError("E_EXISTS", f"{dest} exists: choose another name or remove it")


class _Turn(NamedTuple):
    """Whose turn it is: the expert to be written next, its shard and its layout's number."""

    shard: int
    layout: int
    layer: int
    expert: int


def _iter_turns(plan: SetPlan) -> Iterator[_Turn]:
    for number, shard in enumerate(plan.shards):
        for layer in shard.layers:
            for expert in range(layer.num_experts):
                yield _Turn(number, layer.layout, layer.layer, expert)
