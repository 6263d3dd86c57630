"""One sequence as the native engine keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import StateMark
from kandiga_run.errors import RunError
from kandiga_run.kv.cache import KVCache
from kandiga_run.kv.recurrent import RecurrentState

LayerCache = KVCache | RecurrentState


@dataclass(frozen=True)
class NativeMark:
    """A moment of a sequence: its position, and copies of (conv, delta) a recurrent layer."""

    position: int
    recurrent: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

    @property
    def nbytes(self) -> int:
        """Return the size of the copies."""
        return sum(array.nbytes for arrays in self.recurrent for array in arrays)


class NativeState:
    """The cache of every layer, in layer order, and how far the sequence has come."""

    def __init__(self, caches: Sequence[LayerCache], max_tokens: int) -> None:
        self.caches = tuple(caches)
        self.max_tokens = max_tokens
        self.position = 0
        self._broken = False

    @property
    def nbytes(self) -> int:
        """Return the size of all arrays really held."""
        return sum(cache.nbytes for cache in self.caches)

    @property
    def recurrent_nbytes(self) -> int:
        """Return the size of the recurrent layers' state, which no choice of --kv changes."""
        return sum(cache.nbytes for cache in self.caches if isinstance(cache, RecurrentState))

    @property
    def kv_format(self) -> str:
        """Return how keys and values are held; several formats are joined by "+"."""
        caches = (cache for cache in self.caches if not isinstance(cache, RecurrentState))
        return "+".join(sorted({cache.format for cache in caches}))

    @property
    def is_broken(self) -> bool:
        """Whether a failed or interrupted call left layers that have seen different tokens."""
        return self._broken

    def undo_unfinished(self) -> None:
        """Bring every layer back to `position` after a call that did not reach the last one."""
        for cache in self.caches:
            if isinstance(cache, RecurrentState):
                self._broken = True
            else:
                cache.trim(cache.length - self.position)

    def release_if_broken(self) -> None:
        """Give the memory of a broken state to others, when nobody will bring it to a mark."""
        if self._broken:
            self.caches = ()

    @property
    def can_trim(self) -> bool:
        """Whether past tokens can be taken out again; a recurrent layer forgets nothing."""
        return not any(isinstance(cache, RecurrentState) for cache in self.caches)

    def trim(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens."""
        if num_tokens and not self.can_trim:
            raise RunError("this model has recurrent layers: its state cannot go back")
        if not 0 <= num_tokens <= self.position:
            raise ValueError(f"cannot trim {num_tokens} of {self.position} tokens")
        for cache in self.caches:
            if not isinstance(cache, RecurrentState):
                cache.trim(num_tokens)
        self.position -= num_tokens

    @property
    def can_mark(self) -> bool:
        """Whether the state can go back to marks."""
        return True

    def mark(self) -> NativeMark:
        """Return this moment; copies recurrent state, and no keys or values."""
        layers = (cache for cache in self.caches if isinstance(cache, RecurrentState))
        return NativeMark(
            self.position, tuple((layer.conv.copy(), layer.delta.copy()) for layer in layers)
        )

    def rewind(self, mark: StateMark) -> None:
        """Go back to a mark of this state; a broken one is whole again then."""
        if not self.caches:
            raise ValueError("the state was released after a call that failed halfway")
        if not isinstance(mark, NativeMark) or mark.position > self.position:
            raise ValueError(f"not a mark of the past {self.position} tokens: {mark}")
        recurrent = iter(mark.recurrent)
        for cache in self.caches:
            if isinstance(cache, RecurrentState):
                cache.conv[:], cache.delta[:] = next(recurrent)
            else:
                cache.trim(cache.length - mark.position)
        self.position = mark.position
        self._broken = False
