"""A compressed cache beside mlx-lm's own: sinks and tail as float16, blocks between them coded.

It has what mlx-lm asks of a cache, so `mlx_lm.generate` and mlx-lm's prompt cache files take it.
Attention over it is not mlx-lm's own: see kv_attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import cache as mlx_lm_cache
from numpy.typing import NDArray

from kandiga_run.errors import RunError
from kandiga_run.kv.turboquant import BLOCK_TOKENS, SINK_TOKENS, Coding, blocks_coded_at
from kandiga_run.mlx_engine.kv_code import Code

#: Blocks that are unpacked at a time, which bounds what is ever held decoded.
CHUNK_BLOCKS = 16
_VERSION = 1


@dataclass(frozen=True)
class Coded:
    """Coded keys or values of whole blocks: see `Code.encode`."""

    code: Code
    packed: Any
    scales: Any
    means: Any

    @classmethod
    def none(cls, code: Code, rows: Any) -> Coded:
        """Return no blocks, of the batch and heads of rows (B, H, T, D)."""
        shape = rows.shape[:2]
        return cls(
            code,
            mx.zeros((*shape, 0, code.packed_bytes), mx.uint8),
            mx.zeros((*shape, 0), mx.float16),
            mx.zeros((*shape, 0, code.head_dim), mx.float16),
        )

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        """Return what is held; the means of values are nothing."""
        return self.packed, self.scales, self.means if self.code.is_keys else self.means[:, :, :0]

    @property
    def num_blocks(self) -> int:
        """Return how many blocks there are."""
        return int(self.packed.shape[2]) // BLOCK_TOKENS

    def blocks(self, start: int, stop: int) -> Coded:
        """Return some of the blocks."""
        tokens = slice(start * BLOCK_TOKENS, stop * BLOCK_TOKENS)
        return Coded(
            self.code,
            self.packed[:, :, tokens],
            self.scales[:, :, tokens],
            self.means[:, :, start:stop],
        )

    def extended(self, rows: Any) -> Coded:
        """Return these blocks and those of rows (B, H, n * 128, D)."""
        more = self.code.encode(rows)
        held = self.packed, self.scales, self.means
        arrays = (mx.concatenate([a, b], axis=2) for a, b in zip(held, more, strict=True))
        return Coded(self.code, *arrays)

    def decode(self) -> Any:
        """Return the rows (B, H, n * 128, D) float32."""
        return self.code.decode(self.packed, self.scales, self.means)


class TurboQuantCache(mlx_lm_cache._BaseCache):  # type: ignore[misc]
    """Keys and values of one layer, compressed as in the native engine.

    A token sees 17 to 144 tokens up to itself as float16 and all earlier ones coded, however
    prompts are cut into chunks.
    """

    def __init__(self, key_bits: int, value_bits: int) -> None:
        self.bits_of_keys, self.bits_of_values = key_bits, value_bits
        self.offset = 0
        #: What attention has not been computed over yet: keys, values, as they were returned.
        self.pending: tuple[Any, Any] | None = None
        #: Sinks, then the tail: (B, H, T, D) float16. None while empty.
        self.keys: Any = None
        self.values: Any = None
        #: Coded keys and values.
        self.coded: tuple[Coded, Coded] | None = None

    @property
    def format(self) -> str:
        """Return how keys and values are held, such as "k4v3"."""
        return Coding(self.bits_of_keys, self.bits_of_values).name

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays held."""
        coded = (array for c in self.coded or () for array in c.arrays)
        arrays = [self.keys, self.values, *coded]
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def num_blocks(self) -> int:
        """Return how many blocks are coded."""
        return self.coded[0].num_blocks if self.coded else 0

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Add keys and values (B, H, T, D) and return them alone: the rest is read in attention.

        RunError when nothing attended to the last ones through this package.
        """
        self.check_read()
        self.pending = keys, values
        self.offset += keys.shape[2]
        new = keys.astype(mx.float16), values.astype(mx.float16)
        if self.keys is None:
            self.keys, self.values = new
            self.coded = (
                Coded.none(Code(self.bits_of_keys, keys.shape[3], True), keys),
                Coded.none(Code(self.bits_of_values, values.shape[3], False), values),
            )
        else:
            self.keys = mx.concatenate([self.keys, new[0]], axis=2)
            self.values = mx.concatenate([self.values, new[1]], axis=2)
        return self.pending

    def check_read(self) -> None:
        """RunError when keys were added that no attention asked for: it has computed wrong."""
        if self.pending is not None:
            raise RunError(
                "--kv: this family's attention in mlx-lm computes with its cache in its own way, "
                "which a compressed one does not have; use --kv fp16"
            )

    def code_full_blocks(self) -> int:
        """Code blocks that are full and followed by enough tokens; return how many.

        Their rows stay in `keys` and `values` until `drop_coded`: tokens of the blocks themselves,
        and those soon after, have to see them.
        """
        count = max(0, blocks_coded_at(self.offset) - self.num_blocks)
        if count:
            assert self.coded is not None
            rows = slice(SINK_TOKENS, SINK_TOKENS + count * BLOCK_TOKENS)
            keys, values = self.coded
            self.coded = (
                keys.extended(self.keys[:, :, rows]),
                values.extended(self.values[:, :, rows]),
            )
        return count

    def drop_coded(self, num_blocks: int) -> None:
        """Let go of the rows of blocks that have just been coded."""
        self.pending = None
        if num_blocks:
            rest = SINK_TOKENS + num_blocks * BLOCK_TOKENS
            self.keys, self.values = (
                mx.concatenate([held[:, :, :SINK_TOKENS], held[:, :, rest:]], axis=2)
                for held in (self.keys, self.values)
            )

    def chunks(self) -> Iterator[tuple[int, Coded, Coded]]:
        """Yield (first block, keys, values) of up to CHUNK_BLOCKS coded blocks each."""
        for start in range(0, self.num_blocks, CHUNK_BLOCKS):
            stop = min(start + CHUNK_BLOCKS, self.num_blocks)
            keys, values = (coded.blocks(start, stop) for coded in self.coded or ())
            yield start, keys, values

    def uncoded_positions(self, num_blocks_before: int) -> NDArray[np.int32]:
        """Return where the rows of `keys` belong, when so many blocks lay between them."""
        rows = np.arange(self.keys.shape[2], dtype=np.int32)
        return np.where(rows < SINK_TOKENS, rows, rows + num_blocks_before * BLOCK_TOKENS)

    def trim(self, n: int) -> int:
        """Forget the last tokens; return how many. What is left of a coded block becomes tail."""
        n = min(self.offset, n)
        self.pending = None
        self.offset -= n
        if self.keys is None or n == 0:
            return n
        coded_tokens = self.offset - SINK_TOKENS
        num_blocks = max(0, min(self.num_blocks, coded_tokens // BLOCK_TOKENS))
        if num_blocks < self.num_blocks:
            self._uncode_from(num_blocks)
        rows = self.offset - num_blocks * BLOCK_TOKENS
        self.keys, self.values = self.keys[:, :, :rows], self.values[:, :, :rows]
        return n

    def _uncode_from(self, num_blocks: int) -> None:
        """Keep so many blocks, and the next one as float16 instead of the tail."""
        assert self.coded is not None
        opened = [coded.blocks(num_blocks, num_blocks + 1).decode() for coded in self.coded]
        self.keys, self.values = (
            mx.concatenate([held[:, :, :SINK_TOKENS], rows.astype(mx.float16)], axis=2)
            for held, rows in zip((self.keys, self.values), opened, strict=True)
        )
        keys, values = (coded.blocks(0, num_blocks) for coded in self.coded)
        self.coded = keys, values

    def is_trimmable(self) -> bool:
        """Return that past tokens can be taken out again."""
        return True

    def size(self) -> int:
        """Return the number of tokens held."""
        return self.offset

    def empty(self) -> bool:
        """Return whether no token is held."""
        return self.keys is None

    def make_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Return mlx-lm's mask for the next tokens."""
        return mlx_lm_cache.create_attention_mask(*args, offset=self.offset, **kwargs)

    @property
    def state(self) -> list[Any]:
        """Return arrays that mlx-lm's prompt cache files hold.

        The first says how: version, bits of keys and values, tokens, head_dims of both.
        """
        dims = [0, 0] if self.keys is None else [self.keys.shape[3], self.values.shape[3]]
        bits = [self.bits_of_keys, self.bits_of_values]
        about = mx.array([_VERSION, *bits, self.offset, *dims], mx.int32)
        if self.coded is None or not self.num_blocks:
            return [about, self.keys, self.values]
        keys, values = self.coded
        return [about, self.keys, self.values, *keys.arrays, *values.arrays[:2]]

    @state.setter
    def state(self, state: list[Any]) -> None:
        about, keys, values, *coded = state
        version, key_bits, value_bits, offset, key_dim, value_dim = about.tolist()
        if version != _VERSION:
            raise RunError(
                f"a compressed KV cache of version {version}, this program knows {_VERSION}"
            )
        self.__init__(key_bits, value_bits)  # type: ignore[misc]
        if not offset:
            return
        self.offset, self.keys, self.values = offset, keys, values
        codes = Code(key_bits, key_dim, True), Code(value_bits, value_dim, False)
        self.coded_keys, self.coded_values = (
            Coded.none(codes[0], keys),
            Coded.none(codes[1], values),
        )
        if coded:
            key_codes, key_scales, key_means, value_codes, value_scales = coded
            no_means = mx.zeros((*key_means.shape[:3], value_dim), mx.float16)
            self.coded = (
                Coded(codes[0], key_codes, key_scales, key_means),
                Coded(codes[1], value_codes, value_scales, no_means),
            )


# mlx-lm's load_prompt_cache finds classes by their names in its own module.
mlx_lm_cache.TurboQuantCache = TurboQuantCache
