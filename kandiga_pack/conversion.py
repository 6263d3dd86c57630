"""One conversion under way: read by the schedule, write, remember, free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from formats import DenseSpec, Resumption, SetPlan, SetWriter, plan_shards
from formats.block_pipeline import Fill, Views
from formats.errors import os_errors
from kandiga_pack import schedule
from kandiga_pack.journal import Journal
from kandiga_pack.metadata import make_metadata
from kandiga_pack.progress import Progress, piece_of_work
from kandiga_pack.slices import iter_slices
from kandiga_pack.source_digests import SourceDigests
from kandiga_pack.source_stamps import SourceStamps, identity
from kandiga_pack.sources.base import RowReader, Source, TensorInfo
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.stacks import ExpertStack, find_stacks
from kandiga_pack.staging import Stage
from kandiga_pack.workspace import Workspace

# What a crash may cost at most, besides the layer under way. A checkpoint waits for the disk.
CHECKPOINT_BYTES = 1 << 30
# Superblocks, section tables, JSON and the padding between sections.
_OVERHEAD_BYTES = 16 << 20


class Conversion:
    """What is to be written, worked out from the source before anything is.

    Args:
        source: the checkpoint.
        stage: what lets its files come and go, None if they stay.
        shard_bytes: size aimed at for each file of the set.

    Raises:
        PackError, KexpError: the checkpoint cannot be packed.
    """

    def __init__(self, source: Source, stage: Stage | None, shard_bytes: int) -> None:
        self.source = source
        self._stage = stage
        self._shard_bytes = shard_bytes
        self._stacks = find_stacks(source.tensors, source.config, where=source.name)
        self._dense = _dense_tensors(source.tensors, self._stacks)
        self._plan = plan_shards(
            sum(info.length_bytes for info in self._dense),
            [(stack.layer, stack.num_experts, stack.layout) for stack in self._stacks],
            shard_bytes=shard_bytes,
        )
        self._meta = make_metadata(source, self._stacks, self._dense)
        self._sizes = {name: path.stat().st_size for name, path in source.weight_files.items()}
        self._schedule = schedule.make_schedule(
            # Only a plain checkpoint says which file a tensor's bytes come from.
            list(source.weight_files) if isinstance(source, CheckpointSource) else [],
            self._stacks,
            self._dense,
            _last_layers(self._plan),
        )

    @cached_property
    def request(self) -> dict[str, Any]:
        """What tells this conversion from others, for the journal."""
        stage = self._stage
        files = (
            {name: identity(path) for name, path in self.source.weight_files.items()}
            if stage is None
            else dict(stage.identities)
        )
        return {
            "source": self.source.name,
            "revision": self.source.revision,
            "shard_bytes": self._shard_bytes,
            "contents": self._digest(),
            "files": files,
        }

    def _digest(self) -> str:
        """Return a digest of all that the set's bytes follow from, except the weights."""
        digest = hashlib.sha256(json.dumps(self._meta, sort_keys=True).encode())
        digest.update(repr((self._plan, self._dense)).encode())
        for path in self.source.files:
            with os_errors(path, "read"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
        return digest.hexdigest()

    def remaining(self, journal: Journal) -> list[schedule.Stage]:
        """Return the stages without what the journal says is done."""
        layers: set[int] = set()
        for each in journal.checkpoints.values():
            rows = each.num_rows
            for layer in self._plan.shards[each.shard].layers:
                rows -= layer.num_experts
                if rows >= 0:
                    layers.add(layer.layer)
        return schedule.without_done(self._schedule, journal.groups, layers)

    def needed_bytes(self, journal: Journal) -> int:
        """Return how much fuller the disk gets at most."""
        stage = self._stage
        fetched: Mapping[str, int] = stage.to_fetch if stage is not None else {}
        freed: Mapping[str, int] = stage.to_free if stage is not None else {}
        beside = sum(path.stat().st_size for path in self.source.files)
        peak = schedule.peak_bytes(self.remaining(journal), fetched, freed)
        return peak + beside + _OVERHEAD_BYTES

    def run(self, workspace: Workspace, progress: Progress) -> None:
        """Write the set, or what is left of it, and rename it to the destination."""
        journal = workspace.journal
        remaining = self.remaining(journal)
        done_dense = [info.name for info in self._dense if self._group(info) in journal.groups]
        resume = Resumption(workspace.set_folder, list(journal.checkpoints.values()), done_dense)
        specs = [DenseSpec(info.name, info.dtype, info.shape) for info in self._dense]
        with SourceDigests(self._sizes, journal.digests) as digests:
            # The digests are known at the end; their length is known now.
            self._meta["source"]["files"] = digests.placeholder()
            with SetWriter(
                workspace.dest,
                self._plan,
                self._meta,
                specs,
                files=list(self.source.files),
                resume=resume,
            ) as writer:
                run = _Run(self.source, self._stage, writer, digests, journal, progress)
                with piece_of_work(progress, "packing", _read_bytes(self._schedule)):
                    progress.advance(_read_bytes(self._schedule) - _read_bytes(remaining))
                    run.all(remaining)
                self._meta["source"]["files"] = digests.results()
                writer.replace_meta(self._meta)
                run.check_source()
                journal.ready(writer.finish())
                writer.commit()

    def _group(self, info: TensorInfo) -> str:
        if isinstance(self.source, CheckpointSource):
            return info.file
        return schedule.WHOLE


@dataclass
class _Run:
    """The walk through the stages."""

    source: Source
    stage: Stage | None
    writer: SetWriter
    digests: SourceDigests
    journal: Journal
    progress: Progress

    def __post_init__(self) -> None:
        self._stamps = SourceStamps()
        absent = {*self.journal.freed, *(self.stage.to_fetch if self.stage else ())}
        for name, path in self.source.weight_files.items():
            if name not in absent:
                self._stamps.take(name, path)
        self._new_groups: list[str] = []
        self._new_bytes = 0
        self._packed: list[TensorInfo] = []

    def all(self, stages: Sequence[schedule.Stage]) -> None:
        """Go through the stages that remain."""
        order = [name for stage in stages for name in stage.opens if self._is_needed(name, stages)]
        following = dict(pairwise(order))
        for stage in stages:
            for name in stage.opens:
                if name == schedule.WHOLE:
                    for file, path in self.source.weight_files.items():
                        self.digests.start(file, path)
                elif name in order:
                    self._open(name, following.get(name))
            for info in stage.dense:
                self._write_dense(info)
            self._new_groups += stage.opens
            if stage.stack is not None:
                self._write_layer(stage.stack)
            self._new_bytes += stage.written_bytes
            self._settle(stage)

    def check_source(self) -> None:
        """Raise PackError if a file is another one than when it was opened."""
        self._stamps.check()

    def _is_needed(self, name: str, stages: Sequence[schedule.Stage]) -> bool:
        """Whether anything of a weight file is still to be read, be it for its digest only."""
        if name in self.journal.freed:
            return False
        if name == schedule.WHOLE or name not in self.journal.digests:
            return True
        return any(info.file == name for stage in stages for info in _tensors_of(stage))

    def _open(self, name: str, following: str | None) -> None:
        digest = self.stage.fetch(name, following) if self.stage is not None else None
        if digest is not None:
            self.digests.know(name, digest)
        path = self.source.weight_files[name]
        self._stamps.take(name, path)
        self.digests.start(name, path)

    def _write_dense(self, info: TensorInfo) -> None:
        for data in iter_slices(self.source, info):
            self.writer.write_dense_chunk(info.name, data)
            self._advance(data.nbytes)

    def _write_layer(self, stack: ExpertStack) -> None:
        for expert in range(stack.num_experts):
            if isinstance(self.source, RowReader):
                fill = _reader(self.source, stack, expert)
                self.writer.submit_expert(stack.layer, expert, fill)
                self._advance(sum(stacked.tensor.row_bytes for stacked in stack.parts))
            else:  # mlx and gguf's reader want to stay in one thread
                buffers = _read_expert(self.source, stack, expert)
                self.writer.write_expert(stack.layer, expert, buffers)
                self._advance(sum(data.nbytes for data in buffers.values()))

    def _advance(self, count: int) -> None:
        self.digests.packed(count)
        self.progress.advance(count)

    def _settle(self, stage: schedule.Stage) -> None:
        """Make a checkpoint where one is due, and free what is packed."""
        self._forget(stage)
        to_free = [
            name for name in stage.closes if self.stage is not None and name in self.stage.to_free
        ]
        if to_free or stage.is_last_of_shard or self._new_bytes >= CHECKPOINT_BYTES:
            self._checkpoint()
        for name in to_free:
            self._free(name)

    def _forget(self, stage: schedule.Stage) -> None:
        """Have the page cache drop tensors that are packed and hashed.

        The blocks under way last are read again from the disk then: they are few.
        """
        if not isinstance(self.source, CheckpointSource):
            return
        self._packed += _tensors_of(stage)
        still: list[TensorInfo] = []
        for info in self._packed:
            shard = self.source.shards[info.file]
            if self.digests.has_passed(info.file, shard.end_bytes(info.name)):
                shard.forget(info.name)
            else:
                still.append(info)
        self._packed = still

    def _checkpoint(self) -> None:
        self.check_source()  # what was read from a file that changed is not to be believed
        self.journal.checkpoint(self.writer.checkpoint(), self._new_groups)
        self._new_groups, self._new_bytes = [], 0
        for name, digest in self.digests.ready().items():
            if name not in self.journal.digests:
                self.journal.hashed(name, digest)

    def _free(self, name: str) -> None:
        if self.stage is None or name in self.journal.freed:
            return
        digest = self.digests.result(name)
        if name not in self.journal.digests:
            self.journal.hashed(name, digest)
        self._stamps.drop(name)
        self.stage.free(name)


def _reader(source: RowReader, stack: ExpertStack, expert: int) -> Fill:
    def fill(views: Views) -> None:
        for stacked in stack.parts:
            source.read_row(stacked.tensor.name, expert, views[stacked.part.key])

    return fill


def _read_expert(
    source: Source, stack: ExpertStack, expert: int
) -> dict[tuple[str, str], np.ndarray]:
    return {
        stacked.part.key: source.read(stacked.tensor.name, expert, 1) for stacked in stack.parts
    }


def _dense_tensors(
    tensors: Mapping[str, TensorInfo], stacks: Sequence[ExpertStack]
) -> list[TensorInfo]:
    """Return every tensor that is not of a routed expert, in the checkpoint's order."""
    stacked = {part.tensor.name for stack in stacks for part in stack.parts}
    return [info for name, info in tensors.items() if name not in stacked]


def _last_layers(plan: SetPlan) -> set[int]:
    """Return the last layer of each file; none of a single file, which is done when all is."""
    if len(plan.shards) == 1:
        return set()
    return {shard.layers[-1].layer for shard in plan.shards if shard.layers}


def _read_bytes(stages: Sequence[schedule.Stage]) -> int:
    """Return the bytes of tensors that stages read."""
    return sum(info.length_bytes for stage in stages for info in _tensors_of(stage))


def _tensors_of(stage: schedule.Stage) -> list[TensorInfo]:
    parts = stage.stack.parts if stage.stack is not None else ()
    return [*stage.dense, *(stacked.tensor for stacked in parts)]
