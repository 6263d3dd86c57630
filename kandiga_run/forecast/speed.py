"""Tokens a second before anything ran, as a band between a pessimist's and an optimist's.

A token reads dense weights, its experts and its cache from memory, and from the disk the experts
that are not in memory. The shares of the machine's ceilings that a decode reaches are those that
were measured (cython_kernels/BENCHMARKS.md: 61 to 80 % of memory with everything there; while a
layer waits, 55 to 70 % of the disk), with room for other machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from kandiga_run.forecast.ceilings import MeasuredCeilings
from kandiga_run.forecast.shape import ModelShape

#: Of the memory ceiling, pessimist and optimist.
MEMORY_SHARES = (0.5, 0.85)
#: Of the disk ceiling. The pessimist computes only when everything has been read, the optimist
#: meanwhile.
DISK_SHARES = (0.5, 0.8)
#: Bytes a second at which MLX's own CPU backend goes through dense quantized weights.
MLX_CPU_DENSE_RATES = (0.08e9, 0.7e9)

ASSUMPTIONS = (
    f"decode reaches {MEMORY_SHARES[0]:.0%} to {MEMORY_SHARES[1]:.0%} of the memory ceiling and "
    f"{DISK_SHARES[0]:.0%} to {DISK_SHARES[1]:.0%} of the disk's",
    "low: all experts are used alike, and computing waits for reading; high: those in memory are "
    "asked for twice as often (a guess at trained routers), and both at once",
)


@dataclass(frozen=True)
class Band:
    """A figure that is expected between these."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Return the geometric mean: as many times the one end as the other is times it."""
        return sqrt(self.low * self.high)


@dataclass(frozen=True)
class DecodeForecast:
    """What decoding is expected to be like with so much memory for experts.

    expert_share: of all experts, how many are in memory. disk_bytes: read a token.
    """

    expert_share: float
    disk_bytes: Band
    tokens_per_second: Band


def decode_forecast(
    shape: ModelShape,
    ceilings: MeasuredCeilings,
    *,
    expert_bytes_in_memory: float,
    state_bytes: int,
    runs_on_mlx_cpu: bool = False,
) -> DecodeForecast:
    """Return the forecast for one sequence whose cache holds `state_bytes`."""
    share = min(1.0, max(0.0, expert_bytes_in_memory / max(shape.expert_bytes, 1)))
    # The optimist's experts are there twice as often as if all were used alike. That is a guess at
    # what a trained router does, not a measurement.
    most_missed = shape.token_expert_bytes * (1 - share)
    least_missed = most_missed * (1 - share)
    low = _seconds(shape, ceilings, state_bytes, most_missed, 0, runs_on_mlx_cpu)
    high = _seconds(shape, ceilings, state_bytes, least_missed, 1, runs_on_mlx_cpu)
    return DecodeForecast(share, Band(least_missed, most_missed), Band(1 / low, 1 / high))


def _seconds(
    shape: ModelShape,
    ceilings: MeasuredCeilings,
    state_bytes: int,
    missed_bytes: float,
    side: int,
    runs_on_mlx_cpu: bool,
) -> float:
    """Return the seconds of a token, for the pessimist (0) or the optimist (1)."""
    from_memory = ceilings.memory * MEMORY_SHARES[side]
    dense_rate = MLX_CPU_DENSE_RATES[side] if runs_on_mlx_cpu else from_memory
    computing = (
        shape.dense.every_token / dense_rate
        + (shape.token_expert_bytes + state_bytes) / from_memory
    )
    reading = missed_bytes / (ceilings.disk * DISK_SHARES[side])
    return computing + reading if side == 0 else max(computing, reading)
