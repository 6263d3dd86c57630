"""The one seam between routed experts and whoever computes them.

    with store.fetch(layer, experts) as arrivals:      # all reads start at once
        for expert, address in arrivals:               # in the order in which they arrive
            ...                                        # address is valid inside the `with`

An address is where the expert's payload begins (`formats.Layout` says where its parts lie).

Which store "auto" takes, looked at in this order when a model is opened:

| memory                                         | store  | dense weights                    |
|------------------------------------------------|--------|----------------------------------|
| the user gave a budget                         | owned  | copied to huge pages, counted    |
| experts take at most 85 % of what is available | mapped | copied to huge pages if they fit |
| 90 % of the experts are in the page cache      | mapped | copied to huge pages if they fit |
| anything else: half of what is available       | owned  | copied to huge pages             |

Available is what may be taken without swapping: page cache that can be dropped included, within
the limit of a control group. Rows of an embedding that is not the head too stay in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import Check, EngineOptions, Residency
from kandiga_run.engine.stats import RunStats
from kandiga_run.errors import RunError
from kandiga_run.experts.pages import absent_bytes, address_of, mincore_tells_the_truth
from kandiga_run.memory.use import available_bytes

if TYPE_CHECKING:
    from kandiga_run.container import Model

#: (expert, address of its payload)
Arrival = tuple[int, int]

# Of the memory that is available: below the first share, mapped experts leave room for everything
# else; an owned pool that nobody gave a budget takes the second.
_COMFORTABLE_SHARE = 0.85
_OWNED_SHARE = 0.5
# With this much of the experts in the page cache, reading them into slots again would be waste.
_RESIDENT_SHARE = 0.9


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

    @property
    def held_bytes(self) -> int:
        """Return how much of it the system has given so far."""

    def fetch(self, layer: int, experts: NDArray[np.int32]) -> AbstractContextManager[Arrivals]:
        """Start reading the given experts (n,), all different; each arrives once.

        Raises `formats.KexpError` naming layer and expert when a block is damaged.
        """

    def addresses(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.uint64] | None:
        """Return where the payloads of experts (n,) begin when all can be computed at once.

        None otherwise: then `fetch` them. The short way for a token whose experts are in memory;
        the addresses are valid until the next call of this store.
        """

    def expect_most_of_next(self, layer: int) -> None:
        """Take note that the layer after this one will want nearly all experts, and soon.

        True of every chunk of a prompt in which each expert serves several tokens. Called during
        a fetch.
        """

    @property
    def wants_guesses(self) -> bool:
        """Whether `guess` would be of use."""

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Take note of what the next fetch, of this layer, will probably want, the surest first.

        Some of it is read when the disk would stand still otherwise. Called during a fetch.
        """

    def table(self, layer: int) -> NDArray[np.uint64] | None:
        """Return the addresses of all experts of a layer (E,), 0 where `fetch` is needed.

        To be used at once; say with `count_reused` how many were. None: the store has no table.
        """

    def count_reused(self, num_experts: int) -> None:
        """Count experts of a table that were used."""

    def resize(self, budget_bytes: int) -> None:
        """Give memory back, or take more, up to the budget the store was opened with.

        Raises RunError for a budget that cannot work.
        """

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
    owns otherwise. A budget means "owned". Raises RunError for a budget that cannot work, saying
    the smallest one that can.
    """
    # Imported here: both stores are built on the names of this module.
    from kandiga_run.experts.mapped import MappedStore
    from kandiga_run.experts.owned import OwnedStore

    if residency == "mapped" and budget_bytes is not None:
        raise RunError(
            "a memory budget cannot be kept with mapped experts, whose pages belong to the "
            "kernel: leave one of the two out"
        )
    fits = budget_bytes is None and residency != "owned" and fits_comfortably(model)
    if residency == "auto":
        residency = "mapped" if fits else "owned"
    if residency == "mapped":
        return MappedStore(
            model.container,
            num_readers=num_readers,
            check=check,
            stats=stats,
            huge_pages=fits,
        )
    if budget_bytes is None:
        budget_bytes = int(available_bytes() * _OWNED_SHARE)
    return OwnedStore(
        model.container, budget_bytes, num_readers=num_readers, check=check, stats=stats
    )


def open_store_for(model: Model, options: EngineOptions, stats: RunStats) -> ExpertStore:
    """Return the store an engine starts with.

    Its budget is all of the memory the user allows: an upper bound, for which address space is
    reserved. The engine resizes it as soon as it knows what else takes memory.
    """
    from kandiga_run.experts.owned import smallest_budget

    budget_bytes = options.memory_bytes
    if budget_bytes is not None:
        budget_bytes = max(budget_bytes, smallest_budget(model.container))
    return open_store(
        model,
        residency=options.residency,
        budget_bytes=budget_bytes,
        num_readers=options.num_readers,
        check=options.check,
        stats=stats,
    )


def fits_comfortably(model: Model) -> bool:
    """Whether all experts may stay in the page cache, or are there already."""
    if model.expert_bytes <= available_bytes() * _COMFORTABLE_SHARE:
        return True
    if not all(mincore_tells_the_truth(shard) for shard in model.container.shards):
        return False
    absent = sum(absent_bytes_of_layer(model, layer) for layer in model.container.layers)
    return absent <= model.expert_bytes * (1 - _RESIDENT_SHARE)


def absent_bytes_of_layer(model: Model, layer: int) -> int:
    """Return how much of a layer's experts is not in the page cache.

    The blocks of a layer lie side by side in one shard, so one look covers them all.
    """
    container = model.container
    first = container.extent(layer, 0)
    shard_map = memoryview(container.shards[first.shard].mmap)
    length = container.num_experts(layer) * first.block_bytes
    return absent_bytes(address_of(shard_map) + first.offset_bytes, length)
