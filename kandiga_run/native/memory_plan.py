"""How the native engine shares memory between buffers and experts, from call to call.

A prompt wants rows: each chunk of it reads nearly every expert of a layer, so a chunk of half the
size reads everything twice, while slots beyond those being read and computed gain nothing. A token
wants slots. The same memory serves both, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kandiga_run.experts.store import ExpertStore
from kandiga_run.memory.budget import FixedBytes, bytes_for_experts
from kandiga_run.native.scratch import Scratch

#: Rows that buffers always have memory for: a token, a short message, tokens to be verified.
FEW_ROWS = 32
#: Rows of the largest chunk where chunks cost reads. With 8 of 256 experts a token, 64 tokens
#: share an expert: more gain next to nothing.
MANY_ROWS = 2048
# Sizes of chunks that are tried are multiples of it.
_ROWS_STEP = 64
# Of slots while a prompt is computed, in units of what the store needs at least (two): enough that
# reads go on while whole batches are computed.
_PREFILL_SLOT_PAIRS = 12


class MemoryPlan:
    """Divides a budget, or without one leaves the store what it has."""

    def __init__(
        self, budget_bytes: int | None, scratch: Scratch, store: ExpertStore, least_bytes: int
    ) -> None:
        """least_bytes: what the store needs to work at all."""
        self._budget_bytes = budget_bytes
        self._scratch = scratch
        self._store = store
        self._least_bytes = least_bytes
        self._fixed: FixedBytes | None = None
        #: rows of the largest chunk whose buffers have not been given back
        self.most_rows = 0
        self._kept_rows = 0

    def share(self, fixed: FixedBytes, *, kv_tokens: int) -> None:
        """Leave to the experts what the budget has beside `fixed`, buffers of FEW_ROWS included.

        RunError when it has nothing left, with the smallest budget that works.
        """
        if self._budget_bytes is None:
            return
        self._fixed = fixed
        self._resize(kv_tokens)

    def keep_chunks(self, num_tokens: int) -> int:
        """Return the largest chunk there is room for, at most `num_tokens`.

        Calls with no more tokens are computed in one go from here on, while there is no less room:
        how a sequence is cut changes its results by some units in the last place.
        """
        self._kept_rows = 0
        self._kept_rows = min(num_tokens, self._rows_for(num_tokens))
        return self._kept_rows

    @contextmanager
    def chunk_rows(self, num_tokens: int) -> Iterator[int]:
        """Make room for a call with `num_tokens` tokens; yield how many to compute at a time."""
        rows = self._rows_for(num_tokens)
        num_chunks = -(-num_tokens // rows)
        # Equal chunks: the last one reads all experts whether it is full or not.
        rows = -(-num_tokens // num_chunks)
        self.most_rows = max(self.most_rows, rows)
        try:
            if rows > FEW_ROWS and self._budget_bytes is not None and self._fixed is not None:
                extra = self._scratch.bytes_for(rows) - self._fixed.buffers
                self._store.resize(self._budget_bytes - self._fixed.total - extra)
            yield rows
        finally:
            if rows > FEW_ROWS and self._budget_bytes is not None:
                self._scratch.give_back()
                self.most_rows = 0
                self._resize()

    def _rows_for(self, num_tokens: int) -> int:
        """Return the largest chunk that the budget has room for."""
        if self._budget_bytes is None or self._fixed is None:
            return self._scratch.max_rows
        if num_tokens <= self._kept_rows:
            return self._kept_rows
        wanted = min(self._scratch.max_rows, -(-num_tokens // _ROWS_STEP) * _ROWS_STEP)
        room = self._budget_bytes - self._fixed.total + self._fixed.buffers
        for slots_bytes in (self._least_bytes * _PREFILL_SLOT_PAIRS, self._least_bytes):
            for rows in range(wanted, 0, -_ROWS_STEP):
                if self._scratch.bytes_for(rows) + slots_bytes <= room:
                    return rows
        return FEW_ROWS

    def _resize(self, kv_tokens: int | None = None) -> None:
        if self._budget_bytes is not None and self._fixed is not None:
            rest = bytes_for_experts(
                self._budget_bytes, self._fixed, self._least_bytes, kv_tokens=kv_tokens
            )
            self._store.resize(rest)
