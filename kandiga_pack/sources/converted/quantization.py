"""What to quantize to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Quantization:
    """What to quantize to; None means mlx-lm's default for the mode."""

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"

    def as_settings(self) -> dict[str, Any]:
        """Return what the container records, for `from_settings`."""
        return {"bits": self.bits, "group_size": self.group_size, "mode": self.mode}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None) -> Quantization | None:
        """Return the quantization a container was made with, None if it was packed as it is."""
        return cls(**settings) if settings else None
