"""Medians of many runs, and ours as a multiple of every peer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Median:
    """Of tokens per second, with the extremes: a machine has moods."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Median | None:
        """Return the figures of at least one value."""
        if not values:
            return None
        return cls(median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        if self.count == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


#: {measure: {program: figures}}; a program that failed has no figures.
Results = Mapping[str, Mapping[str, Median | None]]


def markdown_table(results: Results, *, ours: Sequence[str]) -> str:
    """Return a line for each program, a column for each measure; ratios are best of ours to it.

    Args:
        results: tokens per second.
        ours: which programs are ours.
    """
    programs = list(dict.fromkeys(name for figures in results.values() for name in figures))
    lines = [
        "| program | " + " | ".join(f"{measure} | ours / it" for measure in results) + " |",
        "|---|" + "---|---|" * len(results),
    ]
    for program in programs:
        cells = [program]
        for figures in results.values():
            found = figures.get(program)
            cells.append("-" if found is None else str(found))
            cells.append("" if program in ours else _ratio(figures, program, ours))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(figures: Mapping[str, Median | None], program: str, ours: Sequence[str]) -> str:
    best = max((found.median for name in ours if (found := figures.get(name))), default=None)
    theirs = figures.get(program)
    return "" if best is None or theirs is None else f"{best / theirs.median:.2f}"


def to_json(results: Results) -> dict[str, Any]:
    """Return the figures as plain JSON values."""
    return {
        measure: {name: vars(found) if found else None for name, found in figures.items()}
        for measure, figures in results.items()
    }
