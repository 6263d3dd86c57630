"""How fast a measurement could have been at best, given what memory, disk and kernels can do."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from kandiga_run.bench.samples import Figure
from kandiga_run.engine import PREFILL_CHUNK
from kandiga_run.native.token_work import TokenWork


@dataclass(frozen=True)
class Ceilings:
    """The best of each that was measured, in bytes or multiply-adds a second."""

    memory: float
    disk: float
    kernels: float


@dataclass(frozen=True)
class Bound:
    """The least seconds a token takes: what is slowest, with everything else done meanwhile."""

    #: seconds a token by what limits it: "memory", "disk", "kernels"
    seconds: dict[str, float]
    #: the slowest of them
    name: str
    #: share of the measured time that the bound takes; 1 is the ceiling
    fraction: float
    #: share that reading the same bytes takes where they lie; None unless memory limits and it was
    #: measured
    in_place_fraction: float | None = None


def bound(
    figure: Figure, work: TokenWork, ceilings: Ceilings, prefill_chunk: int = PREFILL_CHUNK
) -> Bound:
    """Return the bound of a figure and how close its median came.

    prefill_chunk: the most tokens the engine computes at once.
    """
    if figure.kind == "prefill":
        num_bytes = _prefill_bytes(figure, work, prefill_chunk)
    else:
        num_bytes = _decode_bytes(figure, work)
    seconds = {
        "memory": num_bytes / ceilings.memory,
        "disk": figure.bytes_read_per_token / ceilings.disk,
    }
    if figure.kind == "prefill":
        seconds["kernels"] = _prefill_multiply_adds(figure, work) / ceilings.kernels
    name = max(seconds, key=lambda each: seconds[each])
    speed, in_place = figure.tokens_per_second.median, figure.in_place_bytes_per_second
    in_place_fraction = None
    if in_place is not None and name == "memory":
        in_place_fraction = num_bytes / in_place * speed
    return Bound(seconds, name, seconds[name] * speed, in_place_fraction)


def _decode_bytes(figure: Figure, work: TokenWork) -> float:
    """Return the bytes a token needs; a cache counts as it is held, when it is smaller so."""
    held_bytes = min(sample.state_bytes for sample in figure.samples)
    return work.dense_bytes + work.expert_bytes + min(work.state_bytes, held_bytes)


def _prefill_bytes(figure: Figure, work: TokenWork, prefill_chunk: int) -> float:
    """Return the bytes a token needs when each weight is read once a chunk."""
    dense = work.dense_bytes * ceil(figure.size / prefill_chunk) / figure.size
    return dense + figure.experts_requested_per_token * work.bytes_per_expert


def _prefill_multiply_adds(figure: Figure, work: TokenWork) -> float:
    """Return the multiply-adds of a token with weights; attention among tokens is left out."""
    each_token = work.dense_multiply_adds + work.expert_multiply_adds
    return each_token + work.head_multiply_adds / figure.size
