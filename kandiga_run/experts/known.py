"""Which mapped experts were seen in memory, so that nobody asks the kernel again for each token.

`mincore` costs 6 us an expert, 2 ms a token of 40 layers with 8 experts each. What was seen is
believed until the process reads a page of any mapped file from disk: then the kernel has taken
pages back, and every expert is looked at again before its next use. Looking once a token bounds
what the kernels can fault in unnoticed to the experts of one token.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

# macOS does not count by thread: there every read of ours makes us look again.
_THIS_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


class KnownExperts:
    """The addresses of experts that are in memory and need no check, by layer."""

    def __init__(self, addresses: Mapping[int, Sequence[int]]) -> None:
        """addresses: of every expert of every layer, in memory or not."""
        self._all = {layer: np.array(each, np.uint64) for layer, each in addresses.items()}
        # 0 where nothing is known; no expert lies at address 0.
        self._known = {layer: np.zeros_like(each) for layer, each in self._all.items()}
        self._last_layer = -1
        self._major_faults = _major_faults()
        # One entry for each time, put there by the reader threads.
        self._own_major_faults: list[int] = []

    def of_layer(self, layer: int) -> list[int]:
        """Return an entry for each expert, 0 where nothing is known of it."""
        known: list[int] = self.table(layer).tolist()
        return known

    def addresses(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.uint64] | None:
        """Return the addresses (n,) of experts (n,), or None when one is not known."""
        found: NDArray[np.uint64] = self.table(layer)[experts]
        return found if found.all() else None

    def table(self, layer: int) -> NDArray[np.uint64]:
        """Return the address of every expert, 0 where nothing is known of it."""
        if layer <= self._last_layer:  # another token has begun
            self._forget_if_pages_were_taken()
        self._last_layer = layer
        return self._known[layer]

    def add(self, layer: int, expert: int) -> None:
        """Believe that the expert is in memory, checked as far as it must be."""
        self._known[layer][expert] = self._all[layer][expert]

    @contextmanager
    def own_faults(self) -> Iterator[None]:
        """Expect the faults of this thread in the block: they bring pages in."""
        before = _major_faults(_THIS_THREAD)
        try:
            yield
        finally:
            self._own_major_faults.append(_major_faults(_THIS_THREAD) - before)

    def forget(self) -> None:
        """Believe nothing."""
        for known in self._known.values():
            known.fill(0)

    def _forget_if_pages_were_taken(self) -> None:
        while self._own_major_faults:
            self._major_faults += self._own_major_faults.pop()
        major_faults = _major_faults()
        if major_faults != self._major_faults:
            self._major_faults = major_faults
            self.forget()


def _major_faults(who: int = resource.RUSAGE_SELF) -> int:
    """Return how many page faults had to wait for a disk."""
    return resource.getrusage(who).ru_majflt
