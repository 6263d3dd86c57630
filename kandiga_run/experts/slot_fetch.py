"""One fetch of a layer into slots, and reads that begin before anybody has asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from kandiga_run.engine.stats import RunStats
from kandiga_run.experts.slot_reads import SlotReads
from kandiga_run.experts.slots import Key, SlotPool
from kandiga_run.experts.store import Arrival

# Blocks from which on they are read one after the other: a chunk of a prompt, not some tokens.
_LONG = 32
# One slot of so many is not filled ahead: the first reads of a fetch go there while what is ready
# is computed.
_SHARE_FREE = 8


class _Nobody:
    """Waits for blocks that nobody wants any more, so that their slots are free again."""

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool

    def arrived(self, key: Key, error: BaseException | None) -> None:
        if error is None:
            self._pool.unpin(key)
        else:
            self._pool.discard(key)


class ReadAhead:
    """Experts of a layer that the next fetch will probably want, in slots that nobody may take."""

    def __init__(self, layer: int, pool: SlotPool, reads: SlotReads, stats: RunStats) -> None:
        self.layer = layer
        self._pool = pool
        self._reads = reads
        self._stats = stats
        self._held: set[Key] = set()

    def start(self, experts: Sequence[int], most: int | None = None) -> None:
        """Start reading those of the experts that have no slot, as far as slots go.

        most: of the experts, if not as many as there is room for. May be called again when there
        is more room.
        """
        missing = [key for e in experts if not self._pool.has(key := (self.layer, e))]
        num_slots = self._pool.num_slots
        most_held = num_slots - max(1, num_slots // _SHARE_FREE)
        room = min(self._reads.room_ahead, most_held - len(self._held))
        most_of_layer = most is None
        most = room if most is None else min(most, room)
        wanted = []
        for key in missing[: max(0, most)]:
            if not self._pool.take(key):
                break
            self._held.add(key)
            wanted.append((key, self._pool.address(key), self._pool.buffer(key)))
        self._stats.experts_read_ahead += len(wanted)
        self._reads.start(wanted, self, in_order=most_of_layer)

    def release(self, wanted: Collection[Key]) -> int:
        """Leave what is there to whoever comes, except `wanted`; return how many those are."""
        used = 0
        for key in self._held:
            if key in wanted:
                used += 1
            elif key in self._reads:
                self._reads.hand_over(key, _Nobody(self._pool))
            else:
                self._pool.unpin(key)
        self._held = set()
        return used

    def arrived(self, key: Key, error: BaseException | None) -> None:
        """Keep the slot, or forget what could not be read: who wants it gets the error."""
        if error is not None:
            self._held.discard(key)
            self._pool.discard(key)


class SlotFetch:
    """Which experts hold a slot, which are being read, which must wait."""

    def __init__(self, layer: int, pool: SlotPool, reads: SlotReads, stats: RunStats) -> None:
        self._layer = layer
        self._pool = pool
        self._reads = reads
        self._stats = stats
        self._ready: list[int] = []
        self._in_flight: set[int] = set()
        self._backlog: list[int] = []
        self._is_long = False
        self._error: BaseException | None = None

    def start(self, wanted: list[int], ahead: ReadAhead | None) -> None:
        """Pin what has a slot and start reading the rest, as far as slots go.

        ahead: what was begun, for this layer or another.
        """
        self._reads.poll()
        keys = {(self._layer, expert): None for expert in wanted}
        num_ahead = 0 if ahead is None else ahead.release(keys)
        missing: list[int] = []
        for key in keys:
            if not self._pool.find(key):
                missing.append(key[1])
            elif key in self._reads:
                self._reads.hand_over(key, self)
                self._in_flight.add(key[1])
            else:
                self._ready.append(key[1])
        self._stats.experts_requested += len(keys)
        self._stats.experts_reused += len(keys) - len(missing) - num_ahead
        self._stats.experts_read_ahead_used += num_ahead
        # Popped from the end, so that reads start in the order asked for.
        self._backlog = missing[::-1]
        self._is_long = len(missing) > _LONG
        self._start_reads(0)

    def batches(self, nearly_done: Callable[[], None]) -> Iterator[list[Arrival]]:
        """Yield what is there; asking for the next batch frees the slots of the one before.

        nearly_done: called, perhaps repeatedly, when the disk may begin with something else.
        """
        # The other slots are filled while a batch is computed.
        most = max(1, self._pool.num_slots // 2)
        while self._ready or self._in_flight or self._backlog:
            if not self._ready:
                self._reads.wait()
                if self._error is not None:
                    raise self._error
            else:
                batch, self._ready[:most] = self._ready[:most], []
                self._keep_disk_busy(len(batch), nearly_done)
                try:
                    yield [(expert, self._pool.address((self._layer, expert))) for expert in batch]
                finally:
                    self._unpin(batch)
            self._keep_disk_busy(0, nearly_done)

    def arrived(self, key: Key, error: BaseException | None) -> None:
        """Take note of a block."""
        self._in_flight.discard(key[1])
        if error is None:
            self._ready.append(key[1])
        else:
            self._pool.discard(key)
            self._error = self._error or error

    def finish(self) -> None:
        """Leave no slot pinned that nobody reads into, whether or not everything was taken."""
        self._unpin(self._ready)
        nobody = _Nobody(self._pool)
        for expert in self._in_flight:
            key = (self._layer, expert)
            if key in self._reads:
                self._reads.hand_over(key, nobody)
        self._ready, self._in_flight, self._backlog = [], set(), []

    def _keep_disk_busy(self, num_computed: int, nearly_done: Callable[[], None]) -> None:
        """Start what may be started while a batch of `num_computed` experts is computed.

        What nobody waits for yet comes after the last wanted block has arrived, unless all are read
        in order: a disk works on everything that is under way at once, and the wanted blocks would
        be there when the others are. (A token of 12 layers, half of the experts in slots: 19.4
        tokens/s with the last two wanted blocks under way, 21.3 without.)
        """
        self._start_reads(num_computed)
        if not self._backlog and (self._is_long or not self._in_flight):
            nearly_done()

    def _start_reads(self, num_computed: int) -> None:
        wanted: list[tuple[Key, int, memoryview]] = []
        room = self._reads.room_beside(num_computed)
        while self._backlog and len(wanted) < room:
            key = (self._layer, self._backlog[-1])
            if not self._pool.take(key):
                break
            self._in_flight.add(self._backlog.pop())
            wanted.append((key, self._pool.address(key), self._pool.buffer(key)))
        if wanted:
            self._reads.start(wanted, self, in_order=self._is_long)

    def _unpin(self, experts: list[int]) -> None:
        for expert in experts:
            self._pool.unpin((self._layer, expert))
