"""Checkpoint in, container out, one expert at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from formats import DenseSpec, SetPlan, SetWriter, plan_shards
from kandiga_pack import families, spelling
from kandiga_pack.errors import PackError, UnreadableError
from kandiga_pack.progress import NoProgress, Progress, piece_of_work
from kandiga_pack.source_digests import SourceDigests
from kandiga_pack.sources.base import Source, TensorInfo
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.converted import ConvertedSource, Quantization
from kandiga_pack.sources.open import open_source
from kandiga_pack.stacks import ExpertStack, find_stacks

DEFAULT_SHARD_BYTES = 8 << 30
# Dense tensors travel in slices of about this size; an embedding table may have gigabytes.
SLICE_BYTES = 8 << 20
# Superblocks, section tables, JSON and the padding between sections.
_OVERHEAD_BYTES = 16 << 20


@dataclass(frozen=True)
class ConvertSummary:
    """What a conversion did.

    bytes_read: of the source's weight files. bytes_written: of every file in `path`.
    bytes_per_second: bytes_read over seconds, opening, hashing and checking included.
    notes: lines the user should read, such as what was left out.
    """

    path: Path
    source: str
    architecture: str
    num_layers: int
    num_experts: int
    num_dense_tensors: int
    num_shards: int
    bytes_read: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def bytes_per_second(self) -> float:
        """Source bytes a second."""
        return self.bytes_read / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            **self.__dict__,
            "path": str(self.path),
            "bytes_per_second": self.bytes_per_second,
        }


def convert(
    source: str | Path | Source,
    dest: str | Path,
    *,
    revision: str | None = None,
    quantization: Quantization | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> ConvertSummary:
    """Pack a checkpoint into a new folder `dest`.

    Memory stays at a few blocks whatever the model's size. `dest` appears when it is complete and
    checked, and not before; the same source gives the same bytes.

    Args:
        source: folder, GGUF file or Hub id; or an opened Source, which is left open.
        dest: folder to make; it must not exist.
        revision: for a Hub id.
        quantization: quantize an unquantized checkpoint on the way, as mlx_lm.convert would.
        shard_bytes: size aimed at for each file.

    Raises:
        PackError, formats.KexpError, OSError: see errors.describe for what the user is told.
    """
    started = time.monotonic()
    dest = Path(dest)
    check_destination(dest)
    progress = progress or NoProgress()
    if not isinstance(source, str | Path):
        return _convert(source, dest, shard_bytes, progress, started)
    opened = open_source(source, revision=revision, quantization=quantization)
    try:
        return _convert(opened, dest, shard_bytes, progress, started)
    finally:
        opened.close()


def check_destination(dest: Path) -> None:
    """Raise unless `dest` can be made: it does not exist, and its parent may be written to."""
    if os.path.lexists(dest):
        raise PackError(f"{dest}: already exists; remove it or name another destination")
    parent = dest.absolute().parent
    if not parent.is_dir():
        raise UnreadableError(f"{dest}: {parent} is not a folder; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UnreadableError(f"{dest}: {parent} may not be written to (permission denied)")


def check_free_space(dest: Path, needed_bytes: int) -> None:
    """Raise PackError unless the file system of `dest` has `needed_bytes` to spare."""
    status = os.statvfs(dest.absolute().parent)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < needed_bytes:
        raise PackError(
            f"{dest}: needs {format_bytes(needed_bytes)}, but only {format_bytes(free_bytes)} are "
            "free there; free some space or name another destination"
        )


def format_bytes(count: float) -> str:
    """Write a number of bytes in decimal units, as file managers and the Hub do."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def _convert(
    source: Source, dest: Path, shard_bytes: int, progress: Progress, started: float
) -> ConvertSummary:
    stacks = find_stacks(source.tensors, source.config, where=source.name)
    dense = dense_tensors(source.tensors, stacks)
    plan = plan_shards(
        sum(info.length_bytes for info in dense),
        [(stack.layer, stack.num_experts, stack.layout) for stack in stacks],
        shard_bytes=shard_bytes,
    )
    check_free_space(dest, _needed_bytes(plan, source))
    meta = _metadata(source, stacks, dense)
    tensor_bytes = sum(info.length_bytes for info in source.tensors.values())
    specs = [DenseSpec(info.name, info.dtype, info.shape) for info in dense]
    with SourceDigests(source.weight_files) as digests:
        # The digests are known at the end; their length is known now.
        meta["source"]["files"] = digests.placeholder()
        with SetWriter(dest, plan, meta, specs, files=list(source.files)) as writer:
            with piece_of_work(progress, "packing", tensor_bytes):
                _write_dense(writer, source, dense, progress)
                for stack in stacks:
                    _write_layer(writer, source, stack, progress)
            meta["source"]["files"] = digests.result()
            writer.replace_meta(meta)
            writer.commit()
    return ConvertSummary(
        path=dest,
        source=source.name,
        architecture=meta["architecture"],
        num_layers=len(stacks),
        num_experts=sum(stack.num_experts for stack in stacks),
        num_dense_tensors=len(dense),
        num_shards=len(plan.shards),
        bytes_read=sum(path.stat().st_size for path in source.weight_files.values()),
        bytes_written=sum(path.stat().st_size for path in dest.iterdir()),
        seconds=time.monotonic() - started,
        notes=tuple(source.notes),
    )


def dense_tensors(
    tensors: Mapping[str, TensorInfo], stacks: Sequence[ExpertStack]
) -> list[TensorInfo]:
    """Return every tensor that is not of a routed expert, in the checkpoint's order."""
    stacked = {part.tensor.name for stack in stacks for part in stack.parts}
    return [info for name, info in tensors.items() if name not in stacked]


def iter_slices(source: Source, info: TensorInfo) -> Iterator[np.ndarray]:
    """Yield a tensor's data in order, a slice of rows of about SLICE_BYTES at a time."""
    if not info.shape:
        yield source.read(info.name)
        return
    step = max(1, SLICE_BYTES // max(info.row_bytes, 1))
    for start in range(0, info.shape[0], step):
        yield source.read(info.name, start, min(step, info.shape[0] - start))


def _write_dense(
    writer: SetWriter, source: Source, dense: Sequence[TensorInfo], progress: Progress
) -> None:
    for info in dense:
        for data in iter_slices(source, info):
            writer.write_dense_chunk(info.name, data)
            progress.advance(data.nbytes)


def _write_layer(writer: SetWriter, source: Source, stack: ExpertStack, progress: Progress) -> None:
    for expert in range(stack.num_experts):
        buffers = {
            stacked.part.key: source.read(stacked.tensor.name, expert, 1) for stacked in stack.parts
        }
        writer.write_expert(stack.layer, expert, buffers)
        progress.advance(sum(data.nbytes for data in buffers.values()))


def _needed_bytes(plan: SetPlan, source: Source) -> int:
    beside = sum(path.stat().st_size for path in source.files)
    return plan.total_bytes + beside + _OVERHEAD_BYTES


def _metadata(
    source: Source,
    stacks: Sequence[ExpertStack],
    dense: Sequence[TensorInfo],
) -> dict[str, Any]:
    """Return the container's META: integers and strings only, no clock, host or path."""
    config = source.config
    meta: dict[str, Any] = {
        "architecture": config["model_type"],
        "layers": [
            {"layer": stack.layer, "prefix": stack.prefix, "num_experts": stack.num_experts}
            for stack in stacks
        ],
        "top_k": _top_k(source),
        "activation": families.activation(config),
        "hidden_size": _hidden_size(config, stacks),
        "quantization": _without_floats(config.get("quantization")),
        "source": {
            "repository": source.repository,
            "revision": source.revision,
            "files": {},
        },
        "tensors": _tensors_by_file(source.tensors),
        "counts": {
            "layers": len(stacks),
            "experts": sum(stack.num_experts for stack in stacks),
            "tensors": len(source.tensors),
            "dense_tensors": len(dense),
        },
    }
    if isinstance(source, CheckpointSource):
        meta["headers"] = spelling.record_headers(source)
        meta["index"] = spelling.record_index(source)
    else:
        meta["headers"] = {}
        meta["index"] = spelling.mlx_index(source.tensors)
    if isinstance(source, ConvertedSource):
        meta["conversion"] = source.settings
    return meta


def _top_k(source: Source) -> int:
    top_k = families.top_k(source.config)
    if top_k is None:
        raise PackError(
            f"{source.name}: config.json does not state how many experts a token uses (looked for "
            f"{', '.join(families.TOP_K_KEYS)})"
        )
    return top_k


def _hidden_size(config: Mapping[str, Any], stacks: Sequence[ExpertStack]) -> int:
    stated = families.hidden_sizes(config)
    if stated:
        return next(iter(stated.values()))
    last = next(p for p in stacks[0].parts if p.part.key in {("down", "weight"), ("fc2", "weight")})
    return last.part.shape[0]


def _tensors_by_file(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for info in tensors.values():
        files.setdefault(info.file, []).append(info.name)
    return files


def _without_floats(value: Any) -> Any:
    """Return a JSON value with fractions spelled as strings, as the container's metadata wants."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: _without_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_floats(item) for item in value]
    return value
