"""Attention over compressed caches, put in the place of mlx-lm's own for those caches alone.

Coded blocks are unpacked and multiplied a few at a time, so the whole cache is never decoded: the
query is rotated once, values are summed in their rotated basis and turned back once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

from kandiga_run.errors import RunError
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.turboquant import BLOCK_TOKENS, SINK_TOKENS, blocks_coded_at
from kandiga_run.mlx_engine.kv_cache import Coded, TurboQuantCache

# Where nothing has been seen yet. Finite: the difference of two infinities is not a number.
_LOWEST = -1e30
_own_attention = base.scaled_dot_product_attention


def compressed(caches: Sequence[Any], plan: KVPlan) -> list[Any]:
    """Return a model's empty caches with those of keys and values replaced, as `plan` says.

    Recurrent states and sliding windows are left as they are, and not counted as layers.
    """
    num_layers = sum(type(cache) is KVCache for cache in caches)
    found, index = [], 0
    for cache in caches:
        if type(cache) is not KVCache:
            found.append(cache)
            continue
        coding = plan.layer(index, num_layers).coding
        found.append(TurboQuantCache(coding.key_bits, coding.value_bits) if coding else cache)
        index += 1
    return found


def install(model: Any) -> None:
    """Let the attention of a model's classes take compressed caches; others stay as they are.

    mlx-lm's modules import the function by name, so it is replaced in each of them.
    """
    for module in {type(part).__module__ for _, part in model.named_modules()}:
        names = vars(sys.modules[module])
        if names.get("scaled_dot_product_attention") is _own_attention:
            names["scaled_dot_product_attention"] = attention


def attention(
    queries: Any,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: Any = None,
) -> Any:
    """Do what mlx-lm's scaled_dot_product_attention does; queries (B, heads, T, D).

    RunError when keys and values are not what the compressed cache returned.
    """
    if not isinstance(cache, TurboQuantCache):
        return _own_attention(queries, keys, values, cache, scale, mask, sinks)
    if cache.pending is None or keys is not cache.pending[0] or values is not cache.pending[1]:
        raise RunError(
            "--kv: this family's attention in mlx-lm does not use keys and values as its cache "
            "returns them, so they cannot be compressed; use --kv fp16"
        )
    blocks_before = cache.num_blocks
    positions = cache.uncoded_positions(blocks_before)
    num_coded = cache.code_full_blocks()
    out = _Attention(queries, cache, scale, mask, sinks).over(positions, blocks_before)
    cache.drop_coded(num_coded)
    return out.astype(queries.dtype)


@dataclass
class _Sums:
    """Running softmax: largest score and sum of weights (B, H, G, T, 1)."""

    largest: Any
    weight: Any

    def add(self, scores: Any) -> tuple[Any, Any]:
        """Take scores (B, H, G, T, S) in; return their weights and what older sums are worth."""
        largest = mx.maximum(self.largest, scores.max(-1, keepdims=True))
        weights, factor = mx.exp(scores - largest), mx.exp(self.largest - largest)
        self.largest = largest
        self.weight = self.weight * factor + weights.sum(-1, keepdims=True)
        return weights, factor


class _Attention:
    """One call: B batch, H KV heads, G query heads of each, T queries."""

    def __init__(
        self, queries: Any, cache: TurboQuantCache, scale: float, mask: Any, sinks: Any
    ) -> None:
        batch, heads, length, dim = queries.shape
        kv_heads = cache.keys.shape[1]
        self._grouped = (batch, kv_heads, heads // kv_heads, length)
        self._queries = queries.astype(mx.float32).reshape(*self._grouped, dim) * scale
        self._cache = cache
        self._mask = mask
        self._positions = np.arange(cache.offset - length, cache.offset, dtype=np.int32)
        shape = (*self._grouped, 1)
        self._sums = _Sums(mx.full(shape, _LOWEST), mx.zeros(shape))
        if sinks is not None:
            by_head = sinks.astype(mx.float32).reshape(1, kv_heads, -1, 1, 1)
            self._sums = _Sums(mx.broadcast_to(by_head, shape), mx.ones(shape))

    def over(self, uncoded: NDArray[np.int32], blocks_before: int) -> Any:
        """Return the output (B, heads, T, D).

        uncoded: positions of the uncoded rows. blocks_before: those coded when the call began.
        """
        # A trim may have left more blocks coded than a sequence of that length has.
        by_length = np.array([blocks_coded_at(position + 1) for position in self._positions])
        num_coded = np.maximum(by_length, blocks_before)
        end_of_coded = (SINK_TOKENS + num_coded * BLOCK_TOKENS)[:, None]
        visible = (uncoded < SINK_TOKENS) | (uncoded >= end_of_coded)
        scores = self._queries @ self._across(self._cache.keys).swapaxes(-1, -2)
        weights, _ = self._sums.add(self._masked(scores, uncoded, visible))
        plain = weights @ self._across(self._cache.values)
        if not self._cache.num_blocks:
            return self._flat(plain)
        coded, factor = self._over_coded(num_coded)
        return self._flat(plain * factor + coded)

    def _over_coded(self, num_coded: NDArray[np.int64]) -> tuple[Any, Any]:
        """Return sums of coded values, and what sums from before these are worth.

        num_coded (T): the blocks that each query sees.
        """
        assert self._cache.coded is not None
        key_code, value_code = (coded.code for coded in self._cache.coded)
        rotated = key_code.rotate(self._queries)
        total = mx.zeros((*self._grouped, value_code.head_dim))
        worth = mx.ones((*self._grouped, 1))
        for first, keys, values in self._cache.chunks():
            blocks = first + np.arange(keys.num_blocks, dtype=np.int32).repeat(BLOCK_TOKENS)
            positions = np.arange(blocks.size, dtype=np.int32) + first * BLOCK_TOKENS + SINK_TOKENS
            scores = self._scores(rotated, keys)
            scores = self._masked(scores, positions, blocks < num_coded[:, None])
            weights, factor = self._sums.add(scores)
            weights = weights * values.scales.astype(mx.float32)[:, :, None, None]
            levels = value_code.levels(values.packed)[:, :, None]
            total, worth = total * factor + weights @ levels, worth * factor
            # Without it mlx would unpack all chunks before it multiplies the first.
            mx.eval(total, worth, self._sums.largest, self._sums.weight)
        return value_code.unrotate(total), worth

    def _scores(self, rotated: Any, keys: Coded) -> Any:
        levels = keys.code.levels(keys.packed)[:, :, None].swapaxes(-1, -2)
        scores = rotated @ levels * keys.scales.astype(mx.float32)[:, :, None, None]
        means = self._queries @ keys.means.astype(mx.float32)[:, :, None].swapaxes(-1, -2)
        return scores + mx.repeat(means, BLOCK_TOKENS, axis=-1)

    def _masked(self, scores: Any, positions: NDArray[np.int32], visible: Any) -> Any:
        """Hide what is not `visible` (T, S), or later, or hidden by the caller's mask."""
        if isinstance(self._mask, str) or self._mask is None:
            if self._mask is not None:
                visible = visible & (positions <= self._positions[:, None])
            return scores if visible.all() else mx.where(mx.array(visible), scores, -mx.inf)
        scores = mx.where(mx.array(visible), scores, -mx.inf)
        mask = self._mask[..., mx.array(positions)]
        if mask.ndim == 4:
            _, kv_heads, group, _ = self._grouped
            heads = (kv_heads, group) if mask.shape[1] > 1 else (1, 1)
            mask = mask.reshape(mask.shape[0], *heads, *mask.shape[2:])
        return mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask

    def _across(self, rows: Any) -> Any:
        """Return rows (B, H, S, D) for every query head of a KV head."""
        return rows.astype(mx.float32)[:, :, None]

    def _flat(self, out: Any) -> Any:
        batch, kv_heads, group, length = self._grouped
        return (out / self._sums.weight).reshape(batch, kv_heads * group, length, -1)
