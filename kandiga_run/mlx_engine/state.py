"""One sequence in the mlx engine: mlx-lm's own prompt cache, its KV caches compressed if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import (
    ArraysCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)

from kandiga_run.engine import StateMark
from kandiga_run.errors import RunError
from kandiga_run.kv.formats import KVPlan
from kandiga_run.mlx_engine.kv_attention import compressed
from kandiga_run.mlx_engine.kv_cache import TurboQuantCache

_FORMATS = {mx.float32: "f32", mx.float16: "f16", mx.bfloat16: "bf16"}


@dataclass(frozen=True)
class MlxMark:
    """A moment of a sequence: its position, and the arrays of each recurrent layer."""

    position: int
    recurrent: tuple[tuple[Any, ...], ...]

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays that are kept from being freed."""
        return sum(array.nbytes for layer in self.recurrent for array in layer if array is not None)


class MlxState:
    """KV cache and recurrent state as the model's family wants them."""

    def __init__(self, model: Any, max_tokens: int, kv: KVPlan) -> None:
        self.cache: list[Any] = compressed(make_prompt_cache(model), kv)
        self.position = 0
        self.max_tokens = max_tokens

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays held, room kept for later tokens included."""
        return sum(entry.nbytes for entry in self.cache) if self.position else 0

    @property
    def recurrent_nbytes(self) -> int:
        """Return the size of the recurrent layers' state."""
        if not self.position:
            return 0
        return sum(entry.nbytes for entry in self.cache if isinstance(entry, ArraysCache))

    @property
    def kv_format(self) -> str:
        """Return how keys and values are held; several formats are joined by "+"."""
        if not self.position:
            return ""
        coded = {entry.format for entry in self.cache if isinstance(entry, TurboQuantCache)}
        plain = [entry.state for entry in self.cache if not isinstance(entry, TurboQuantCache)]
        arrays = (array for _, array in tree_flatten(plain) if isinstance(array, mx.array))
        dtypes = {_FORMATS[array.dtype] for array in arrays if array.dtype in _FORMATS}
        return "+".join(sorted(coded | dtypes))

    @property
    def can_trim(self) -> bool:
        """Whether past tokens can be taken out again; recurrent layers and full windows cannot."""
        return bool(can_trim_prompt_cache(self.cache))

    def trim(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens."""
        if not 0 <= num_tokens <= self.position:
            raise ValueError(f"cannot trim {num_tokens} of {self.position} tokens")
        if num_tokens == 0:
            return
        if not self.can_trim:
            raise RunError("this model's state cannot go back: it keeps no past tokens apart")
        trim_prompt_cache(self.cache, num_tokens)
        self.position -= num_tokens

    @property
    def can_mark(self) -> bool:
        """Whether the state can go back to marks; full sliding windows cannot."""
        return all(isinstance(entry, ArraysCache) or entry.is_trimmable() for entry in self.cache)

    @property
    def is_broken(self) -> bool:
        """Whether layers have seen different tokens; calls are never given up within a chunk."""
        return False

    def mark(self) -> MlxMark:
        """Return this moment. mlx's arrays never change: nothing is copied."""
        layers = (entry for entry in self.cache if isinstance(entry, ArraysCache))
        return MlxMark(self.position, tuple(tuple(layer.cache) for layer in layers))

    def rewind(self, mark: StateMark) -> None:
        """Go back to a mark of this state."""
        if not isinstance(mark, MlxMark) or mark.position > self.position:
            raise ValueError(f"not a mark of the past {self.position} tokens: {mark}")
        recurrent = iter(mark.recurrent)
        for entry in self.cache:
            if isinstance(entry, ArraysCache):
                entry.cache = list(next(recurrent))
            else:
                entry.trim(self.position - mark.position)
        self.position = mark.position

    def check_read(self) -> None:
        """RunError when a layer computed without the keys and values of its compressed cache."""
        for entry in self.cache:
            if isinstance(entry, TurboQuantCache):
                entry.check_read()

    def arrays(self) -> list[Any]:
        """Return what must be evaluated after a step besides the logits.

        The logits do not depend on the next recurrent state: left alone, its graph would grow
        with every token.
        """
        return [entry.state for entry in self.cache]
