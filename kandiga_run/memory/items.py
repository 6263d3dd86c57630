"""What the memory of this process is used for."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from kandiga_run.engine import Engine
from kandiga_run.memory.use import MemoryUse
from kandiga_run.sizes import format_size

_EVERYTHING_ELSE = "everything_else"
_NAMES = {
    "experts": "experts",
    "dense_weights": "dense weights",
    "kv_cache": "KV cache and recurrent state",
    "buffers": "buffers",
    _EVERYTHING_ELSE: "Python, libraries and tokenizer",
}


@runtime_checkable
class ItemizingEngine(Protocol):
    """An engine that knows what it holds memory for."""

    def memory_items(self) -> dict[str, int]:
        """Return bytes of private memory by use; mapped files are left out.

        Keys: experts, dense_weights, kv_cache, buffers.
        """


def memory_items(engine: Engine, use: MemoryUse) -> dict[str, int] | None:
    """Return private memory by what it is used for, everything else included.

    The sum is use.anonymous_bytes. None where the engine or the system does not say.
    """
    if not isinstance(engine, ItemizingEngine) or use.anonymous_bytes is None:
        return None
    items = engine.memory_items()
    # Sizes as planned may be larger than what was touched of them so far.
    rest_bytes = max(0, use.anonymous_bytes - sum(items.values()))
    return {**items, _EVERYTHING_ELSE: rest_bytes}


def describe_items(items: dict[str, int]) -> str:
    """Return the items in words, and what they are without the experts."""
    parts = [f"{_NAMES[name]} {format_size(size)}" for name, size in items.items() if size]
    outside = sum(items.values()) - items["experts"]
    return f"{', '.join(parts)}; {format_size(outside)} without experts"
