"""Single measurements, and several of the same thing put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

Kind = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Sample:
    """One prefill, or some decode steps in a row."""

    kind: Kind
    #: what was asked for: tokens of the prefill, or the depth a decode starts at
    size: int
    #: tokens computed, and the time it took
    tokens: int
    seconds: float
    #: experts read from disk, by the store's own counters
    bytes_read: int
    #: what the kernel says this process made the disk read; None where it does not
    process_read_bytes: int | None
    experts_requested: int
    experts_read: int
    #: seconds by what they were spent on
    time_split: dict[str, float]
    #: how the tokens before came about: "empty", "made-up" or "prefilled"
    filling: str = "empty"
    #: arrays of the sequence at the end, and how its keys and values are held
    state_bytes: int = 0
    kv_format: str = ""
    #: at which a token's weights were read right afterwards, where they lie, nothing computed;
    #: None where that is not known
    in_place_bytes_per_second: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Return tokens over seconds."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the largest of several values."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(min(values), median(values), max(values))


@dataclass
class Figure:
    """All samples of one kind and size."""

    kind: Kind
    size: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> Spread:
        """Return the spread over all samples."""
        return Spread.of([sample.tokens_per_second for sample in self.samples])

    @property
    def tokens(self) -> int:
        """Return the tokens of all samples."""
        return sum(sample.tokens for sample in self.samples)

    @property
    def bytes_read_per_token(self) -> float:
        """Return expert bytes read from disk over tokens computed."""
        return sum(sample.bytes_read for sample in self.samples) / self.tokens

    @property
    def experts_requested_per_token(self) -> float:
        """Return (layer, expert) pairs over tokens; a prefill chunk asks once for an expert."""
        return sum(sample.experts_requested for sample in self.samples) / self.tokens

    @property
    def process_read_bytes(self) -> int | None:
        """Return what the kernel says was read from disk, None when it is silent."""
        values = [s.process_read_bytes for s in self.samples if s.process_read_bytes is not None]
        return sum(values) if len(values) == len(self.samples) else None

    @property
    def in_place_bytes_per_second(self) -> float | None:
        """Return the middle one of the samples that have one, else None."""
        values = [s.in_place_bytes_per_second for s in self.samples]
        known = [value for value in values if value is not None]
        return median(known) if known else None

    @property
    def time_split(self) -> dict[str, float]:
        """Return the seconds of all samples by what they were spent on."""
        names = self.samples[0].time_split
        return {name: sum(s.time_split[name] for s in self.samples) for name in names}


def add_sample(figures: list[Figure], sample: Sample) -> None:
    """Put a sample to those of its kind."""
    for figure in figures:
        if (figure.kind, figure.size) == (sample.kind, sample.size):
            figure.samples.append(sample)
            return
    figures.append(Figure(sample.kind, sample.size, [sample]))


def sample_from(values: dict[str, Any]) -> Sample:
    """Return a sample from its fields as JSON gave them."""
    return Sample(**values)
