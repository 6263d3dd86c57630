"""The one seam between routed experts and whoever computes them.

    with store.fetch(layer, experts) as arrivals:      # all reads start at once
        for expert, address in arrivals:               # in the order in which they arrive
            ...                                        # address is valid inside the `with`

An address is where the expert's payload begins (`formats.Layout` says where its parts lie).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import Check, Residency
from kandiga_run.errors import RunError
from kandiga_run.stats import RunStats

if TYPE_CHECKING:
    from kandiga_run.container import Model

#: (expert, address of its payload)
Arrival = tuple[int, int]


class Arrivals:
    """Experts as they arrive: one by one when iterated, or all that are there, by `batches`.

    Few slots make a store work in waves: asking for the next batch may then reuse the memory of
    the batch before, so finish with addresses before asking for more.
    """

    def __init__(self, batches: Iterable[list[Arrival]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Arrival]:
        for batch in self._batches:
            yield from batch

    def batches(self) -> Iterator[list[Arrival]]:
        """Yield lists of everything that has arrived meanwhile, never an empty one."""
        return iter(self._batches)


class ExpertStore(Protocol):
    """Brings experts into memory and says where they lie. One fetch at a time."""

    residency: str
    stats: RunStats

    @property
    def nbytes(self) -> int:
        """Return the size of the memory the store itself holds (none when mapped)."""

    def fetch(self, layer: int, experts: NDArray[np.int32]) -> AbstractContextManager[Arrivals]:
        """Start reading the given experts (n,), all different; each arrives once.

        Raises `formats.KexpError` naming layer and expert when a block is damaged.
        """

    def resize(self, budget_bytes: int) -> None:
        """Give memory back, or take more, up to a budget; RunError when it cannot work."""

    def close(self) -> None:
        """Stop the readers and release the memory. Closing twice is harmless."""


def open_store(
    model: Model,
    *,
    residency: Residency = "auto",
    budget_bytes: int | None = None,
    num_readers: int | None = None,
    check: Check = "first-touch",
    stats: RunStats | None = None,
) -> ExpertStore:
    """Return the store for a model; `budget_bytes` is what the experts alone may occupy.

    "auto" maps when the experts are resident or fit comfortably in the memory that is free, and
    owns otherwise. A budget means "owned" unless "mapped" is asked for. Raises RunError for a
    budget that cannot work, saying the smallest one that can.
    """
    raise RunError("no expert store is available")
