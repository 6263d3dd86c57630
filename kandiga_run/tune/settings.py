"""What is tuned, and how people read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from kandiga_run.engine import Residency
from kandiga_run.sizes import format_size


@dataclass(frozen=True)
class Settings:
    """Choices of `load_engine` that change its speed and nothing else; None is its own default."""

    residency: Residency = "auto"
    memory_bytes: int | None = None
    num_readers: int | None = None
    num_threads: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Return them as keyword arguments of `load_engine`."""
        return asdict(self)

    def with_count(self, name: Literal["num_readers", "num_threads"], value: int) -> Settings:
        """Return them with another number of readers or threads."""
        return replace(
            self,
            num_readers=value if name == "num_readers" else self.num_readers,
            num_threads=value if name == "num_threads" else self.num_threads,
        )

    def __str__(self) -> str:
        parts: list[str] = [self.residency if self.memory_bytes is None else "owned"]
        if self.memory_bytes is not None:
            parts.append(format_size(self.memory_bytes))
        if self.num_readers is not None:
            parts.append(_counted(self.num_readers, "reader"))
        if self.num_threads is not None:
            parts.append(_counted(self.num_threads, "thread"))
        return ", ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
