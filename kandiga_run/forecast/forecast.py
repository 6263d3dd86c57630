"""Everything that is foretold of one model on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from kandiga_run.engine import NATIVE_ARCHITECTURES, has_apple_gpu
from kandiga_run.forecast.ceilings import MeasuredCeilings
from kandiga_run.forecast.shape import ModelShape
from kandiga_run.forecast.speed import DecodeForecast, decode_forecast
from kandiga_run.kv.choices import KVChoice
from kandiga_run.sizes import format_size, two_digits

Verdict = Literal["fits", "tight", "no"]

# What a process with this package takes, and each token of a vocabulary in its tokenizer: measured
# on Linux with the 248320 tokens of Qwen3.5 (136 MiB together).
_PROCESS_BYTES = 46 << 20
_TOKEN_BYTES = 380
# Buffers of the few rows that always have memory: 7.0 MiB at a hidden size of 2048.
_BUFFER_BYTES_PER_HIDDEN = 3584
_PAGE_BYTES = 4096
# Of each size of expert: one is computed while the other is filled.
_LEAST_SLOTS = 2
# Of a budget, above which the rest is not worth speaking of as room.
_TIGHT_MEMORY_SHARE = 0.9
# Of the free disk, likewise.
_TIGHT_DISK_SHARE = 0.95
#: Below this reading along is no pleasure.
SLOW_TOKENS_PER_SECOND = 2.0
# Of the memory that is free, what an engine may take without the desktop suffering.
USABLE_MEMORY_SHARE = 0.8

_BUDGETS = tuple(size * 10**9 for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256))


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes. peak: the most that is on the disk while packing, the container included; all beyond
    what is there already. free: where it would go, the bytes done before included."""

    download: int
    packed: int
    peak: int
    free: int


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes. kv: of one sequence of so many tokens. smallest: the least budget that works."""

    process: int
    dense: int
    buffers: int
    kv: int
    smallest: int


@dataclass(frozen=True)
class BudgetForecast:
    """What a budget gives; `budget_bytes` None is page cache for everything."""

    budget_bytes: int | None
    decode: DecodeForecast


@dataclass(frozen=True)
class Forecast:
    """A model on this machine. Sizes in bytes."""

    shape: ModelShape
    engine: Literal["native", "mlx"] | None
    disk: DiskNeeds
    memory: MemoryNeeds
    memory_budget: int
    context_tokens: int
    kv: KVChoice
    #: {tokens: bytes}
    kv_by_context: dict[int, int]
    token_bytes: int
    budgets: tuple[BudgetForecast, ...]
    chosen: DecodeForecast | None
    ceilings: MeasuredCeilings | None
    verdict: Verdict
    reasons: tuple[str, ...]


def forecast(
    shape: ModelShape,
    *,
    folder: Path,
    memory_bytes: int,
    total_memory_bytes: int,
    context_tokens: int,
    kv: KVChoice,
    ceilings: MeasuredCeilings | None,
    done_bytes: int = 0,
) -> Forecast:
    """Return what to expect.

    folder: where the container is or would be. memory_bytes: that an engine may take.
    total_memory_bytes: of the machine; larger budgets are not worth a line. ceilings: None leaves
    speeds out. done_bytes: of it that are on the disk already.
    """
    engine = engine_for(shape.architecture)
    memory = memory_needs(shape, context_tokens, kv)
    disk = disk_needs(shape, folder, done_bytes)
    on_mlx_cpu = engine == "mlx" and not has_apple_gpu()

    def decode(budget: int | None) -> DecodeForecast | None:
        if ceilings is None:
            return None
        fixed = memory.smallest - least_expert_bytes(shape)
        room = shape.expert_bytes if budget is None else budget - fixed
        return decode_forecast(
            shape,
            ceilings,
            expert_bytes_in_memory=room,
            state_bytes=memory.kv,
            runs_on_mlx_cpu=on_mlx_cpu,
        )

    budgets = tuple(
        BudgetForecast(budget, speed)
        for budget in _budgets(shape, memory, total_memory_bytes)
        if (speed := decode(budget)) is not None
    )
    chosen = decode(memory_bytes) if memory_bytes >= memory.smallest else None
    verdict, reasons = _judge(shape, engine, disk, memory, memory_bytes, chosen)
    return Forecast(
        shape=shape,
        engine=engine,
        disk=disk,
        memory=memory,
        memory_budget=memory_bytes,
        context_tokens=context_tokens,
        kv=kv,
        kv_by_context={n: shape.sequence.num_bytes(n, kv) for n in _contexts(shape)},
        token_bytes=shape.dense.every_token + shape.token_expert_bytes + memory.kv,
        budgets=budgets,
        chosen=chosen,
        ceilings=ceilings,
        verdict=verdict,
        reasons=reasons,
    )


def engine_for(architecture: str) -> Literal["native", "mlx"] | None:
    """Return the engine that "auto" would take, None when none knows the architecture."""
    if architecture in NATIVE_ARCHITECTURES and not has_apple_gpu():
        return "native"
    found = find_spec("mlx_lm")  # without importing it: that takes seconds
    for place in (found.submodule_search_locations or []) if found else []:
        file = Path(place) / "models" / f"{architecture}.py"
        if file.is_file() and "switch_layers" in file.read_text("utf-8"):
            return "mlx"
    return "native" if architecture in NATIVE_ARCHITECTURES else None


def disk_needs(shape: ModelShape, folder: Path, done_bytes: int = 0) -> DiskNeeds:
    """Return what a download and a conversion into `folder` take."""
    while not folder.is_dir():
        folder = folder.absolute().parent
    free = shutil.disk_usage(folder).free + done_bytes
    download, packed = shape.download, shape.packed_bytes
    if shape.kind == "container":
        return DiskNeeds(0, packed, 0, free)
    if download is None:  # a checkpoint that is here, and stays
        return DiskNeeds(0, packed, packed, free)
    if shape.kind == "published":
        return DiskNeeds(download.total_bytes, packed, download.total_bytes, free)
    beside = download.largest_file_bytes if download.is_streamed else download.total_bytes
    return DiskNeeds(download.total_bytes, packed, packed + beside, free)


def memory_needs(shape: ModelShape, context_tokens: int, kv: KVChoice) -> MemoryNeeds:
    """Return what a budget must have room for; within a few percent of what the engine refuses."""
    process = _PROCESS_BYTES + _TOKEN_BYTES * shape.vocab_size
    rows = min(shape.dense.by_row, context_tokens * 2 * _PAGE_BYTES + shape.dense.by_row // 8)
    dense = shape.dense.every_token + rows
    buffers = _BUFFER_BYTES_PER_HIDDEN * shape.hidden_size
    kv_bytes = shape.sequence.num_bytes(context_tokens, kv)
    smallest = process + dense + buffers + kv_bytes + least_expert_bytes(shape)
    return MemoryNeeds(process, dense, buffers, kv_bytes, smallest)


def least_expert_bytes(shape: ModelShape) -> int:
    """Return the slots without which nothing can be computed."""
    return sum(size * min(_LEAST_SLOTS, count) for size, count in shape.sizes.items())


def _budgets(shape: ModelShape, memory: MemoryNeeds, total: int) -> Iterator[int | None]:
    """Yield budgets from the smallest that works to what the machine has; None for everything."""
    everything = memory.smallest + shape.expert_bytes
    yield from (each for each in _BUDGETS if memory.smallest <= each < min(everything, total))
    if everything <= total:
        yield None


def _contexts(shape: ModelShape) -> tuple[int, ...]:
    most = shape.context_length or 32768
    return tuple(n for n in (4096, 8192, 32768, 131072, 262144) if n <= most) or (most,)


def _judge(
    shape: ModelShape,
    engine: str | None,
    disk: DiskNeeds,
    memory: MemoryNeeds,
    memory_bytes: int,
    decode: DecodeForecast | None,
) -> tuple[Verdict, tuple[str, ...]]:
    """Return whether it fits, and why not or what to know."""
    no: list[str] = []
    tight: list[str] = []
    if engine is None:
        no.append(f"no engine here knows the architecture {shape.architecture!r}")
    if disk.peak > disk.free:
        no.append(
            f"it takes {format_size(disk.peak)} of disk, of which {format_size(disk.free)} are free"
        )
    elif disk.peak > disk.free * _TIGHT_DISK_SHARE:
        tight.append(f"it leaves {format_size(disk.free - disk.peak)} of the disk free")
    if memory.smallest > memory_bytes:
        no.append(
            f"it needs {format_size(memory.smallest)} of memory at least, and may take "
            f"{format_size(memory_bytes)}"
        )
    elif memory.smallest > memory_bytes * _TIGHT_MEMORY_SHARE:
        tight.append("hardly any memory is left for experts: nearly all are read for each token")
    if decode is not None and decode.tokens_per_second.middle < SLOW_TOKENS_PER_SECOND:
        speed = decode.tokens_per_second
        tight.append(f"slow: {two_digits(speed.low)} to {two_digits(speed.high)} tokens a second")
    if no:
        return "no", tuple(no)
    return ("tight", tuple(tight)) if tight else ("fits", ())
