"""The compressed KV cache: blocks of 128 tokens at 2 to 8 bits, the rest as float16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels import (
    TIME_ATTENTION,
    TIME_KV_CODING,
    TurboQuantBlocks,
    add_query_energies,
    kv_append,
    label_time,
    turboquant_attention,
)
from kandiga_run.errors import RunError
from kandiga_run.kv.prompt_cache import take

#: Tokens of a block, and the first tokens of a sequence ("sinks"), which are never coded: a model
#: attends to them from everywhere.
BLOCK_TOKENS = 128
SINK_TOKENS = 4
#: A token sees at least so many of those before it as they were: attention to them is the largest.
RECENT_TOKENS = 16
#: Rows of the uncoded tokens; and those that are left once a block of them is coded.
_UNCODED_TOKENS = SINK_TOKENS + BLOCK_TOKENS + RECENT_TOKENS
_KEPT_TOKENS = SINK_TOKENS + RECENT_TOKENS
MAX_HEAD_DIM = 512


def blocks_coded_at(num_tokens: int) -> int:
    """Return how many blocks are coded once a sequence has so many tokens."""
    return max(0, num_tokens - _KEPT_TOKENS - 1) // BLOCK_TOKENS


@dataclass(frozen=True)
class Coding:
    """Bits of a key and of a value coordinate; with qjl one key bit is the residual's sign."""

    key_bits: int
    value_bits: int
    qjl: bool = False

    @property
    def name(self) -> str:
        """Return such as "k4v3", "kv3" for equal bits, "kv3-qjl"."""
        same = self.key_bits == self.value_bits
        bits = f"kv{self.key_bits}" if same else f"k{self.key_bits}v{self.value_bits}"
        return f"{bits}-qjl" if self.qjl else bits


class TurboQuantKVCache:
    """Keys and values of one layer: sinks and tail as float16, blocks between them coded.

    A token sees 17 to 144 tokens up to itself as float16 and all earlier ones coded, whether tokens
    come one by one or in chunks: a block is coded when the token comes that is more than
    RECENT_TOKENS after it. To keep it so within a chunk, `append` stores what fits the tail and
    leaves the rest to `attend`, which must follow while the arrays given to `append` still hold the
    same.
    """

    def __init__(self, num_kv_heads: int, head_dim: int, max_tokens: int, coding: Coding) -> None:
        if head_dim > MAX_HEAD_DIM:
            raise RunError(
                f"a KV cache of head_dim {head_dim} cannot be compressed, at most {MAX_HEAD_DIM} "
                "can: use --kv fp16"
            )
        self._coding = coding
        self._max_tokens = max_tokens
        rows = min(max_tokens, _UNCODED_TOKENS)
        #: Sinks, then the tail: (num_kv_heads, 148, head_dim).
        self._keys = np.empty((num_kv_heads, rows, head_dim), np.float16)
        self._values = np.empty_like(self._keys)
        self._num_uncoded = 0
        self._blocks = TurboQuantBlocks(
            num_kv_heads, head_dim, coding.key_bits, coding.value_bits, qjl=coding.qjl
        )
        self._num_coded = 0
        #: What queries had in each channel so far, (num_kv_heads, head_dim): keys are coded for it.
        self._energies = np.zeros((num_kv_heads, head_dim), np.float32)
        self._waiting: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @staticmethod
    def bytes_for(num_kv_heads: int, head_dim: int, num_tokens: int, coding: Coding) -> int:
        """Return what a cache of `num_tokens` tokens holds."""
        blocks = TurboQuantBlocks(
            num_kv_heads, head_dim, coding.key_bits, coding.value_bits, qjl=coding.qjl
        )
        rows = min(num_tokens, _UNCODED_TOKENS)
        num_blocks = blocks_coded_at(num_tokens)
        return 4 * num_kv_heads * head_dim * (rows + 1) + num_blocks * blocks.block_bytes

    @property
    def format(self) -> str:
        """Return the coding's name."""
        return self._coding.name

    @property
    def length(self) -> int:
        """Return the number of tokens held."""
        return self._num_coded + self._num_uncoded + self._num_waiting

    @property
    def head_shape(self) -> tuple[int, int]:
        """Return (num_kv_heads, head_dim)."""
        num_kv_heads, _, head_dim = self._keys.shape
        return num_kv_heads, head_dim

    @property
    def nbytes(self) -> int:
        """Return the size of sinks, tail, blocks and energies."""
        uncoded = self._keys.nbytes + self._values.nbytes
        return uncoded + self._blocks.nbytes + self._energies.nbytes

    @property
    def _num_waiting(self) -> int:
        return 0 if self._waiting is None else self._waiting[0].shape[0]

    def append(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Add keys and values (T, num_kv_heads, head_dim)."""
        length = self.length + keys.shape[0]
        if length > self._max_tokens:
            raise ValueError(f"{length} tokens in a cache made for {self._max_tokens}")
        while self._waiting is not None:
            self._store_some()
        self._waiting = (keys, values)
        self._store_some()

    def attend(self, queries: NDArray[np.float32], scale: float, out: NDArray[np.float32]) -> None:
        """Attend causally from the last T tokens; queries, out (T, num_heads, head_dim)."""
        begin, num_tokens = 0, queries.shape[0]
        if num_tokens < self._num_waiting:
            raise ValueError(f"{num_tokens} queries for {self._num_waiting} tokens just appended")
        while True:
            end = num_tokens - self._num_waiting
            turboquant_attention(
                self._blocks,
                queries[begin:end],
                self._keys,
                self._values,
                self._num_uncoded,
                scale,
                out[begin:end],
            )
            add_query_energies(queries[begin:end], self._energies)
            if self._waiting is None:
                return
            begin = end
            self._store_some()

    def trim(self, num_tokens: int) -> None:
        """Forget the last tokens. What is left of a coded block stays coded."""
        if not 0 <= num_tokens <= self.length:
            raise ValueError(f"cannot trim {num_tokens} of {self.length} tokens")
        # An interrupt that came while a block was coded is raised before the block is counted.
        self._blocks.trim(self._blocks.num_tokens - self._num_coded)
        waiting = min(num_tokens, self._num_waiting)
        if self._waiting is not None and waiting:
            keys, values = self._waiting
            left = keys.shape[0] - waiting
            self._waiting = (keys[:left], values[:left]) if left else None
        num_tokens -= waiting
        sinks = min(self._num_uncoded, SINK_TOKENS) if self._num_coded else 0
        uncoded = min(num_tokens, self._num_uncoded - sinks)
        coded = min(num_tokens - uncoded, self._num_coded)
        self._blocks.trim(coded)
        self._num_coded -= coded
        self._num_uncoded -= num_tokens - coded

    def take_plain(
        self, keys: NDArray[Any], values: NDArray[Any], energies: NDArray[np.float32] | None = None
    ) -> None:
        """Fill an empty cache with keys and values (num_kv_heads, T, head_dim) of any float.

        energies: of the queries so far, see `add_query_energies`.
        """
        if energies is not None:
            self._energies[:] = energies
        keys, values = (array.astype(np.float16, copy=False) for array in (keys, values))
        num_tokens = keys.shape[1]
        num_blocks = blocks_coded_at(num_tokens)
        label_time(TIME_KV_CODING)
        for index in range(num_blocks):
            self._blocks.encode(keys, values, SINK_TOKENS + index * BLOCK_TOKENS, self._energies)
        label_time(TIME_ATTENTION)
        self._num_coded = num_blocks * BLOCK_TOKENS
        self._num_uncoded = num_tokens - self._num_coded
        sinks = min(SINK_TOKENS, num_tokens)
        for held, given in ((self._keys, keys), (self._values, values)):
            held[:, :sinks] = given[:, :sinks]
            held[:, sinks : self._num_uncoded] = given[:, sinks + self._num_coded :]

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return how tokens are held, and the arrays of those held."""
        while self._waiting is not None:
            self._store_some()
        blocks = np.empty((len(self._blocks), self._blocks.block_bytes), np.uint8)
        for index, block in enumerate(blocks):
            self._blocks.save(index, block)
        return {"format": self.format}, {
            "keys": self._keys[:, : self._num_uncoded],
            "values": self._values[:, : self._num_uncoded],
            "blocks": blocks,
            "counts": np.array(self._blocks.counts_of_blocks(), np.int32),
            "energies": self._energies,
        }

    def load(self, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Fill an empty cache with what `save` gave; ValueError when it does not fit."""
        if about["format"] != self.format:
            raise ValueError(f"held as {about['format']}, wanted {self.format}")
        num_heads, num_rows, head_dim = self._keys.shape
        num_blocks, uncoded = arrays["blocks"].shape[0], arrays["keys"].shape[1]
        if uncoded > num_rows:
            raise ValueError(f"{uncoded} tokens not coded, wanted at most {num_rows}")
        keys, values = (
            take(arrays, name, np.float16, (num_heads, uncoded, head_dim))
            for name in ("keys", "values")
        )
        blocks = take(arrays, "blocks", np.uint8, (num_blocks, self._blocks.block_bytes))
        counts = take(arrays, "counts", np.int32, (num_blocks,))
        energies = take(arrays, "energies", np.float32, self._energies.shape)
        if uncoded + counts.sum() > self._max_tokens:
            raise ValueError(f"{uncoded + counts.sum()} tokens, wanted at most {self._max_tokens}")
        for block, count in zip(blocks, counts, strict=True):
            self._blocks.load(block, int(count))
        self._num_coded = self._blocks.num_tokens
        self._energies[:] = energies
        self._keys[:, :uncoded], self._values[:, :uncoded] = keys, values
        self._num_uncoded = uncoded

    def _store_some(self) -> None:
        """Move waiting tokens into the tail as far as it has room; code it first when full."""
        if self._waiting is None:
            return
        keys, values = self._waiting
        if self._num_uncoded == _UNCODED_TOKENS:
            label_time(TIME_KV_CODING)
            self._blocks.encode(self._keys, self._values, SINK_TOKENS, self._energies)
            label_time(TIME_ATTENTION)
            # Not a call among these lines: there Python would raise an interrupt.
            self._keys[:, SINK_TOKENS:_KEPT_TOKENS] = self._keys[:, -RECENT_TOKENS:]
            self._values[:, SINK_TOKENS:_KEPT_TOKENS] = self._values[:, -RECENT_TOKENS:]
            self._num_coded += BLOCK_TOKENS
            self._num_uncoded = _KEPT_TOKENS
        count = min(keys.shape[0], self._keys.shape[1] - self._num_uncoded)
        kv_append(keys[:count], values[:count], self._keys, self._values, self._num_uncoded)
        self._num_uncoded += count
        self._waiting = (keys[count:], values[count:]) if count < keys.shape[0] else None
