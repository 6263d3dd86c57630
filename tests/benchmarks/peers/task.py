"""What is measured, and what one run of a program found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """One prompt and one answer, each computed from an empty context.

    prefill, decode: tokens.
    repetitions: of each, in one process.
    warm_up: compute a prompt and a token first that do not count.
    """

    threads: int
    prefill: int
    decode: int
    repetitions: int
    warm_up: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


@dataclass
class Run:
    """Tokens per second of every repetition, and the seconds before the first one."""

    prefill: list[float]
    decode: list[float]
    load_seconds: float | None = None
    #: versions and settings
    about: dict[str, Any] = field(default_factory=dict)
