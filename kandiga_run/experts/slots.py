"""Slots for experts in anonymous huge-page memory, and which expert loses its slot.

Most of what a small pool reads is not asked for again before it must go. So what comes in passes
through a few slots, the same ones over and over, and only an expert that was asked for more often
than one that is kept takes its place. Two gains, both measured: memory that was just computed from
is still in the processor's caches, and a disk fills 4 to 8 such slots at 3.0 to 3.2 GB/s, 32 or
more that take turns at 2.4 (x86-64, virtual NVMe, 1.77 MB blocks); and experts that routing favours
are not washed out by those it picked once. Evicting the least recently used has neither.
"""

from __future__ import annotations

from collections import OrderedDict

from kandiga_run.experts.huge_memory import HugeMemory
from kandiga_run.experts.slot_memory import FreeSlots

Key = tuple[int, int]  # (layer, expert)

# Slots that what is read passes through: what is being read, and what is computed meanwhile.
_MOST_PASSING = 16
# Kept experts compared for each one that comes in; the least used of them may lose its slot.
_SAMPLE = 4
# An expert takes another's place when asked for more often by this much: equal ones stay.
_MARGIN = 2
# Uses are halved when each expert has been asked for so often on average: routing changes.
_USES_REMEMBERED = 16


class SlotPool:
    """Buffers of `slot_bytes`, each holding one expert or none.

    Address space for all slots is reserved at once and costs nothing; memory is charged when a
    slot is first filled, and given back when `resize` takes the slot away.
    """

    def __init__(self, slot_bytes: int, max_slots: int) -> None:
        self.slot_bytes = slot_bytes
        self.max_slots = max_slots
        self.num_slots = max_slots
        self._memory = HugeMemory(slot_bytes * max_slots)
        self._free = FreeSlots(self._memory, slot_bytes, max_slots)
        self._slot_of: dict[Key, int] = {}
        # Both in the order of their last use or comparison, oldest first.
        self._kept: OrderedDict[Key, None] = OrderedDict()
        self._passing: OrderedDict[Key, None] = OrderedDict()
        self._pinned: set[Key] = set()
        self._uses: dict[Key, int] = {}
        self._num_uses = 0

    @property
    def nbytes(self) -> int:
        """Return the size of the slots in use."""
        return self.num_slots * self.slot_bytes

    @property
    def held_bytes(self) -> int:
        """Return the memory of the slots that have been touched."""
        return self._free.num_with_memory * self.slot_bytes

    def find(self, key: Key) -> bool:
        """Pin an expert that has a slot; False when it has none. Either way it was asked for."""
        self._count_use(key)
        if key not in self._slot_of:
            return False
        self._pinned.add(key)
        return True

    def has(self, key: Key) -> bool:
        """Whether an expert has a slot."""
        return key in self._slot_of

    def addresses(self, keys: list[Key]) -> list[int] | None:
        """Return where experts' slots begin, asked for at this moment; None when one has none."""
        slot_of = self._slot_of
        if not all(key in slot_of for key in keys):
            return None
        for key in keys:
            self._count_use(key)
        return [self._memory.address + slot_of[key] * self.slot_bytes for key in keys]

    def take(self, key: Key) -> bool:
        """Give an expert a slot and pin it, evicting if need be; False when all are pinned."""
        slot = self._free.take()
        if slot is None and len(self._slot_of) < self._most_passing():
            slot = self._free.take_any()
        if slot is not None:
            keep = len(self._passing) >= self._most_passing()
        else:
            victim = self._less_used(key)
            keep = victim is not None
            victim = victim or self._last_passed() or self._any_unpinned()
            if victim is not None:
                keep = keep or victim in self._kept
                slot = self._forget(victim)
            elif (slot := self._free.take_any()) is None:
                return False
        self._slot_of[key] = slot
        (self._kept if keep else self._passing)[key] = None
        self._pinned.add(key)
        return True

    def unpin(self, key: Key) -> None:
        """Allow an expert to be evicted."""
        self._pinned.discard(key)

    def discard(self, key: Key) -> None:
        """Forget an expert whose slot holds nothing usable."""
        self._pinned.discard(key)
        self._free.add(self._forget(key))

    def address(self, key: Key) -> int:
        """Return where the expert's slot begins."""
        return self._memory.address + self._slot_of[key] * self.slot_bytes

    def buffer(self, key: Key) -> memoryview:
        """Return the expert's slot, writable."""
        start = self._slot_of[key] * self.slot_bytes
        return self._memory.view[start : start + self.slot_bytes]

    def resize(self, num_slots: int) -> None:
        """Use the first `num_slots` slots, at most `max_slots`; their contents stay.

        Nothing may be pinned.
        """
        num_slots = min(num_slots, self.max_slots)
        for key, slot in list(self._slot_of.items()):
            if slot >= num_slots:
                self._forget(key)
        with self._free.changing(num_slots, set(self._slot_of.values())):
            start, end = num_slots * self.slot_bytes, self.num_slots * self.slot_bytes
            if start < end:
                self._memory.give_back(start, end)
        self.num_slots = num_slots

    def close(self) -> None:
        """Give all memory back."""
        self._free.close()
        self._memory.close()

    def _most_passing(self) -> int:
        return min(_MOST_PASSING, max(1, self.num_slots // 2))

    def _count_use(self, key: Key) -> None:
        self._uses[key] = self._uses.get(key, 0) + 1
        self._num_uses += 1
        if self._num_uses > _USES_REMEMBERED * len(self._uses):
            self._uses = {each: uses // 2 for each, uses in self._uses.items()}
            self._num_uses = sum(self._uses.values())

    def _less_used(self, key: Key) -> Key | None:
        """Return a kept expert that was asked for clearly less often, or None."""
        uses, fewest = self._uses, self._uses.get(key, 0) - _MARGIN
        found = None
        for _ in range(min(_SAMPLE, len(self._kept))):
            other = next(iter(self._kept))
            self._kept.move_to_end(other)
            if uses.get(other, 0) <= fewest and other not in self._pinned:
                found, fewest = other, uses.get(other, 0) - 1
        return found

    def _last_passed(self) -> Key | None:
        """Return the expert whose slot is most likely still in a cache, or None."""
        return next((key for key in reversed(self._passing) if key not in self._pinned), None)

    def _any_unpinned(self) -> Key | None:
        return next((key for key in self._kept if key not in self._pinned), None)

    def _forget(self, key: Key) -> int:
        self._kept.pop(key, None)
        self._passing.pop(key, None)
        return self._slot_of.pop(key)
