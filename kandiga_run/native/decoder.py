"""A decoder: embedding, layers of (mixer, feed-forward) with residuals, norm, head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cython_kernels import TIME_DENSE, label_time
from kandiga_run.native.blocks.embedding import Embedding, Head
from kandiga_run.native.blocks.norm import RMSNorm
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.state import LayerCache, NativeState

Array = NDArray[np.float32]


class Mixer(Protocol):
    """Mixes tokens with those before them: attention, or a recurrent layer."""

    def new_cache(self, max_tokens: int, kv_dtype: DTypeLike) -> LayerCache:
        """Return what this layer keeps of an empty sequence."""

    def cache_bytes(self, max_tokens: int, kv_dtype: DTypeLike) -> int:
        """Return what it keeps of a full one."""

    def forward(self, x: Array, cache: Any, position: int, out: Array) -> None:
        """Compute x (T, H) into out (T, H), and remember x in the cache."""


class FeedForward(Protocol):
    """Works on each token alone: an MLP, or a mixture of experts."""

    def forward(self, x: Array, out: Array) -> None:
        """Compute x (T, H) into out (T, H)."""


@dataclass(frozen=True)
class Layer:
    """x += mixer(input_norm x); x += feed_forward(post_norm x)."""

    input_norm: RMSNorm
    mixer: Mixer
    post_norm: RMSNorm
    feed_forward: FeedForward


class Decoder:
    """The whole model. H hidden_size."""

    def __init__(
        self,
        embedding: Embedding,
        layers: Sequence[Layer],
        norm: RMSNorm,
        head: Head,
        scratch: Scratch,
    ) -> None:
        self._embedding = embedding
        self._layers = tuple(layers)
        # Each residual addition is fused with the norm that reads its sum.
        self._next_norms = (*(layer.input_norm for layer in self._layers[1:]), norm)
        self._head = head
        self._scratch = scratch
        self.vocab_size = embedding.vocab_size
        self._hidden_size = embedding.hidden_size
        for name in ("hidden", "normed", "delta"):
            scratch.declare(name, self._hidden_size)

    def new_state(self, max_tokens: int, kv_dtype: DTypeLike) -> NativeState:
        """Return the state of an empty sequence."""
        caches = [layer.mixer.new_cache(max_tokens, kv_dtype) for layer in self._layers]
        return NativeState(caches, max_tokens)

    def state_bytes(self, max_tokens: int, kv_dtype: DTypeLike) -> int:
        """Return the size of a state whose sequence is full."""
        return sum(layer.mixer.cache_bytes(max_tokens, kv_dtype) for layer in self._layers)

    def forward(self, tokens: NDArray[np.int32], state: NativeState, logits: Array | None) -> None:
        """Append a chunk of tokens (T,), T <= scratch.max_rows, to the state.

        logits (T, vocab_size) is filled for every token, (1, vocab_size) for the last one, None
        computes none.
        """
        try:
            normed = self._layers_forward(tokens, state)
        except BaseException:
            state.undo_unfinished()
            raise
        state.position += tokens.shape[0]
        if logits is not None:
            self._head.forward(normed[-logits.shape[0] :], logits)

    def _layers_forward(self, tokens: NDArray[np.int32], state: NativeState) -> Array:
        """Return the normalized hidden states (T, H) that the head reads."""
        num_tokens = tokens.shape[0]
        hidden = self._scratch.rows("hidden", num_tokens, self._hidden_size)
        normed = self._scratch.rows("normed", num_tokens, self._hidden_size)
        delta = self._scratch.rows("delta", num_tokens, self._hidden_size)
        label_time(TIME_DENSE)
        self._embedding.forward(tokens, hidden)
        self._layers[0].input_norm.forward(hidden, normed)
        for layer, cache, next_norm in zip(
            self._layers, state.caches, self._next_norms, strict=True
        ):
            layer.mixer.forward(normed, cache, state.position, delta)
            layer.post_norm.add_forward(hidden, delta, normed)
            layer.feed_forward.forward(normed, delta)
            label_time(TIME_DENSE)
            next_norm.add_forward(hidden, delta, normed)
        return normed
