"""Writing a set of shards: streamed into a folder of its own, checked, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from formats import digests
from formats.block_pipeline import BlockPipeline, Fill, Views
from formats.buffers import Buffer, as_bytes
from formats.dense import DenseImage, DenseSpec, plan_image
from formats.dense_writer import DenseWriter
from formats.durable import flush_folder, write_file
from formats.errors import KexpError, os_errors
from formats.flusher import Flusher
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
from formats.shard_writer import ShardCheckpoint, ShardWriter


@dataclass(frozen=True)
class Resumption:
    """Where a writer that may be interrupted keeps its files, and what an earlier one left there.

    The caller remembers, on the disk, what `SetWriter.checkpoint` returned and which dense tensors
    had been written by then; nothing but that is believed.

    Attributes:
        folder: becomes the destination; kept when the context is left without a commit.
        checkpoints: the last one of each shard.
        dense_names: dense tensors that were whole at the last checkpoint.
    """

    folder: Path
    checkpoints: Sequence[ShardCheckpoint] = ()
    dense_names: Collection[str] = field(default=())


class SetWriter:
    """Writes a set of shards; a context manager.

    Everything goes into `<dest>.partial-<pid>`, or the folder of a `Resumption`, which `commit`
    renames to `dest`. Leaving the context without a commit, by an exception or Ctrl-C included,
    removes the former and keeps the latter. No shard has a superblock, and the folder no kexp.json,
    before everything is written: what is unfinished never opens. The bytes written depend on the
    arguments alone: no clock, host or path is in them.

    Memory: one block (`submit_expert`: two, or 24 MB of them), the index (64 bytes an expert) and
    whatever the caller passes.
    """

    def __init__(
        self,
        dest: str | Path,
        plan: SetPlan,
        meta: Mapping[str, Any],
        dense_tensors: Sequence[DenseSpec],
        *,
        files: Sequence[Path] = (),
        resume: Resumption | None = None,
    ) -> None:
        """Prepare; nothing is written before the context is entered.

        Args:
            dest: folder to create; it must not exist.
            plan: from `plan_shards`.
            meta: the metadata document. The writer fills in "dense_header" and each layer's
                "layout".
            dense_tensors: all of them; placed in this order, unaligned ones last.
            files: copied beside the shards under their own names, and pinned in kexp.json.
            resume: keep what was written when interrupted, and go on from what is there.
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
        self._flusher = Flusher()
        self._pipeline = BlockPipeline()
        self._shards = [
            ShardWriter(number, plan, sections, self.dense_image.total_bytes, self._flusher)
            for number in range(len(plan.shards))
        ]
        self._files = [Path(file) for file in files]
        self._records: dict[str, FileRecord] = {}
        self._dense = DenseWriter(self.dense_image, self._shards[0])
        self._turns = _iter_turns(plan)
        self._turn = next(self._turns, None)
        self._resume = resume
        self._temp = self.dest.with_name(f"{self.dest.name}.partial-{os.getpid()}")
        if resume is not None:
            self._temp = resume.folder
        self._entered = False
        self._set_root: str | None = None

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
        try:
            with os_errors(self._temp, "created"):
                self._temp.mkdir(parents=True, exist_ok=self._resume is not None)
            self._lay_out()
        except BaseException:
            self._discard()
            raise
        self._entered = True
        return self

    def _lay_out(self) -> None:
        """Make every file, or take over what a `Resumption` tells of."""
        done = {each.shard: each for each in self._resume.checkpoints} if self._resume else {}
        self._remove_others([self.plan.shards[number].name for number in done])
        for file in self._files:
            self._copy(file)
        for shard in self._shards:
            shard.create(self._temp, done.get(shard.number))
        self._dense.start(self._resume.dense_names if self._resume else ())
        while self._turn is not None and self._shards[self._turn.shard].has(self._turn.row):
            self._turn = next(self._turns, None)
        if self._resume is not None:
            with os_errors(self._temp, "written"):
                flush_folder(self._temp)

    def _remove_others(self, kept: Collection[str]) -> None:
        """Remove what is in the folder and was not told of, kexp.json above all."""
        with os_errors(self._temp, "emptied"):
            for path in self._temp.iterdir():
                if path.name not in kept:
                    path.unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        """Close everything; remove the folder, gone after a commit, unless it is to be kept."""
        self._pipeline.close()
        self._dense.close()
        self._flusher.close()
        for shard in self._shards:
            shard.close()
        if self._resume is None:
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
        layout, shard = self._take_turn(layer, expert)
        wanted = {part.key for part in layout.parts}
        if part_buffers.keys() != wanted:
            odd = ", ".join(".".join(key) for key in sorted(part_buffers.keys() ^ wanted))
            raise KexpError(
                "E_PLAN", f"parts are not the layout's: {odd}", layer=layer, expert=expert
            )
        given = {key: as_bytes(buffer) for key, buffer in part_buffers.items()}
        for part in layout.parts:
            if len(given[part.key]) != part.length_bytes:
                raise KexpError(
                    "E_PLAN",
                    f"part {part}: {len(given[part.key])} bytes given, {part.length_bytes} wanted",
                    layer=layer,
                    expert=expert,
                )

        def copy(views: Views) -> None:
            for key, view in views.items():
                view[:] = given[key]

        place = shard.add_entry(layer, expert, self._layout_no())
        self._pipeline.put(layout, copy, place.write, place.done)
        self._turn = next(self._turns, None)

    def submit_expert(self, layer: int, expert: int, fill: Fill) -> None:
        """Have the next expert written by a worker thread: faster than `write_expert`.

        Returns before the expert is written; an error is raised by a later call.

        Args:
            fill: called in that thread with {(projection, role): memoryview}; it fills each view
                to its end. Several run at once.
        Raises:
            KexpError: E_PLAN if it is not this expert's turn, E_IO.
        """
        layout, shard = self._take_turn(layer, expert)
        place = shard.add_entry(layer, expert, self._layout_no())
        self._pipeline.submit(layout, fill, place.write, place.done)
        self._turn = next(self._turns, None)

    def _take_turn(self, layer: int, expert: int) -> tuple[Layout, ShardWriter]:
        if not self._entered:
            raise RuntimeError("an expert outside the writer's context")
        turn = self._turn
        if turn is None or (layer, expert) != (turn.layer, turn.expert):
            wanted = "none" if turn is None else f"layer {turn.layer} expert {turn.expert}"
            raise KexpError(
                "E_PLAN", f"written out of turn; wanted {wanted}", layer=layer, expert=expert
            )
        if turn.row == 0 and turn.shard > 1:
            self._drain()
            self._shards[turn.shard - 1].close()  # thousands of shards are more than may be open
        return self.plan.layouts[turn.layout], self._shards[turn.shard]

    def _layout_no(self) -> int:
        return self._turn.layout if self._turn else -1

    def checkpoint(self) -> list[ShardCheckpoint]:
        """Put on the disk what was written so far; return the new checkpoint of each shard touched.

        All dense tensors that are whole are on the disk then, too. Shards that are complete are
        closed.

        Raises:
            KexpError: E_IO. What was written since the last checkpoint is then not to be believed.
        """
        self._drain()
        return [shard.checkpoint() for shard in self._shards if shard.is_touched]

    def _drain(self) -> None:
        self._pipeline.drain()
        with os_errors(self._temp, "written"):
            self._flusher.wait()

    def finish(self) -> str:
        """Write all that is not weights: roots, superblocks, kexp.json; fsync and check the whole.

        Returns:
            The set root in hexadecimal.
        Raises:
            KexpError: E_PLAN if something is missing, E_IO, or what `open_set` finds.
        """
        turn = self._turn
        if turn is not None:
            raise KexpError("E_PLAN", "was not written", layer=turn.layer, expert=turn.expert)
        self._drain()
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
            # Under its own name only when it is on the disk: with it, the set opens.
            write_file(self._temp / f"{MANIFEST_NAME}.partial", manifest.pack())
            (self._temp / f"{MANIFEST_NAME}.partial").rename(self._temp / MANIFEST_NAME)
            flush_folder(self._temp)
        open_set(self._temp).close()
        self._set_root = root.hex()
        return self._set_root

    def commit(self) -> Path:
        """Finish, unless `finish` was called, and rename. Return `dest`.

        Raises:
            KexpError: E_EXISTS, E_IO, and those of `finish`.
        """
        if self._set_root is None:
            self.finish()
        _refuse_existing(self.dest)
        with os_errors(self.dest, "created"):
            self._temp.rename(self.dest)
            flush_folder(self.dest.parent)
        return self.dest


def _refuse_existing(dest: Path) -> None:
    if dest.exists() or dest.is_symlink():
        raise KexpError("E_EXISTS", f"{dest} exists: choose another name or remove it")


class _Turn(NamedTuple):
    """Whose turn it is: the expert to be written next, its shard, row and layout's number."""

    shard: int
    row: int
    layout: int
    layer: int
    expert: int


def _iter_turns(plan: SetPlan) -> Iterator[_Turn]:
    for number, shard in enumerate(plan.shards):
        row = 0
        for layer in shard.layers:
            for expert in range(layer.num_experts):
                yield _Turn(number, row, layer.layout, layer.layer, expert)
                row += 1
