"""Slots for experts in anonymous huge-page memory, with the least recently used given away."""

from __future__ import annotations

from collections import OrderedDict

from kandiga_run.experts.huge_memory import HugeMemory

Key = tuple[int, int]  # (layer, expert)


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
        self._free = list(reversed(range(max_slots)))
        self._slot_of: OrderedDict[Key, int] = OrderedDict()  # least recently used first
        self._pinned: set[Key] = set()

    @property
    def nbytes(self) -> int:
        """Return the size of the slots in use."""
        return self.num_slots * self.slot_bytes

    def find(self, key: Key) -> bool:
        """Pin an expert that has a slot, as the most recently used; False when it has none."""
        if key not in self._slot_of:
            return False
        self._slot_of.move_to_end(key)
        self._pinned.add(key)
        return True

    def touch(self, key: Key) -> bool:
        """Make an expert that has a slot the most recently used; False when it has none."""
        if key not in self._slot_of:
            return False
        self._slot_of.move_to_end(key)
        return True

    def addresses(self, keys: list[Key]) -> list[int] | None:
        """Return where experts' slots begin, used at this moment; None when one has none."""
        slot_of = self._slot_of
        if not all(key in slot_of for key in keys):
            return None
        for key in keys:
            slot_of.move_to_end(key)
        return [self._memory.address + slot_of[key] * self.slot_bytes for key in keys]

    def take(self, key: Key) -> bool:
        """Give an expert a slot and pin it, evicting if need be; False when all are pinned."""
        slot = self._free.pop() if self._free else self._evict()
        if slot is None:
            return False
        self._slot_of[key] = slot
        self._pinned.add(key)
        return True

    def unpin(self, key: Key) -> None:
        """Allow an expert to be evicted."""
        self._pinned.discard(key)

    def discard(self, key: Key) -> None:
        """Forget an expert whose slot holds nothing usable."""
        self._pinned.discard(key)
        self._free.append(self._slot_of.pop(key))

    def address(self, key: Key) -> int:
        """Return where the expert's slot begins."""
        return self._memory.address + self._slot_of[key] * self.slot_bytes

    def buffer(self, key: Key, length: int) -> memoryview:
        """Return the first `length` bytes of the expert's slot, writable."""
        start = self._slot_of[key] * self.slot_bytes
        return self._memory.view[start : start + length]

    def resize(self, num_slots: int) -> None:
        """Use the first `num_slots` slots, at most `max_slots`; their contents stay.

        Nothing may be pinned.
        """
        num_slots = min(num_slots, self.max_slots)
        for key, slot in list(self._slot_of.items()):
            if slot >= num_slots:
                del self._slot_of[key]
        if num_slots < self.num_slots:
            start, end = num_slots * self.slot_bytes, self.num_slots * self.slot_bytes
            self._memory.give_back(start, end)
        self.num_slots = num_slots
        used = set(self._slot_of.values())
        self._free = [slot for slot in reversed(range(num_slots)) if slot not in used]

    def close(self) -> None:
        """Give all memory back."""
        self._memory.close()

    def _evict(self) -> int | None:
        for key in self._slot_of:
            if key not in self._pinned:
                return self._slot_of.pop(key)
        return None
