"""A decoder: embedding, layers of (mixer, feed-forward) with residuals, norm, head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cython_kernels import TIME_DENSE, label_time
from kandiga_run.kv.formats import KVPlan, LayerFormat
from kandiga_run.native.blocks.embedding import Embedding, Head
from kandiga_run.native.blocks.moe import MoE
from kandiga_run.native.blocks.norm import RMSNorm
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.state import LayerCache, NativeState

Array = NDArray[np.float32]


class Mixer(Protocol):
    """Mixes tokens with those before them: attention, or a recurrent layer."""

    #: Whether it keeps keys and values.
    has_kv: bool

    def new_cache(self, max_tokens: int, kv: LayerFormat) -> LayerCache:
        """Return what this layer keeps of an empty sequence."""

    def cache_bytes(self, max_tokens: int, kv: LayerFormat) -> int:
        """Return what it keeps of a full one."""

    def bind(self, x: Array, out: Array) -> None:
        """Fix where `forward` finds x and leaves its result, both (max_rows, H)."""

    def forward(self, num_tokens: int, cache: Any, position: int) -> None:
        """Compute the first num_tokens rows of x into those of out, and remember x in the cache.

        The first token is at `position`.
        """

    def forward_sequences(self, caches: Sequence[Any], positions: Sequence[int]) -> None:
        """Compute row b of x, the token of sequence b at positions[b], into row b of out."""


class FeedForward(Protocol):
    """Works on each token alone: an MLP, or a mixture of experts."""

    def bind(self, x: Array, out: Array) -> None:
        """Fix where `forward` finds x and leaves its result, both (max_rows, H)."""

    def forward(self, num_tokens: int) -> None:
        """Compute the first num_tokens rows of x into those of out."""


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
        self._head = head
        self._scratch = scratch
        self.vocab_size = embedding.vocab_size
        self._hidden_size = embedding.hidden_size
        for name in ("hidden", "normed", "delta"):
            scratch.declare(name, self._hidden_size)
        for layer, following in pairwise(self._layers):
            if isinstance(layer.feed_forward, MoE) and isinstance(following.feed_forward, MoE):
                layer.feed_forward.expect(following.post_norm, following.feed_forward)
        self._bind(norm)

    def _bind(self, norm: RMSNorm) -> None:
        """Give every block its arrays, the same for all layers: see `_layers_forward`."""
        hidden, normed, delta = (
            self._scratch.rows(name, self._scratch.max_rows, self._hidden_size)
            for name in ("hidden", "normed", "delta")
        )
        for layer in self._layers:
            layer.mixer.bind(normed, delta)
            layer.feed_forward.bind(normed, delta)
            if isinstance(layer.feed_forward, MoE):
                layer.feed_forward.bind_look_ahead(hidden)
        # Each residual addition is fused with the norm that reads its sum.
        next_norms = (*(layer.input_norm for layer in self._layers[1:]), norm)
        self._steps = tuple(
            (
                layer.mixer.forward,
                layer.post_norm.bind_add(hidden, delta, normed),
                layer.feed_forward.forward,
                next_norm.bind_add(hidden, delta, normed),
            )
            for layer, next_norm in zip(self._layers, next_norms, strict=True)
        )

    def new_state(self, max_tokens: int, kv: KVPlan) -> NativeState:
        """Return the state of an empty sequence."""
        caches = [
            layer.mixer.new_cache(max_tokens, layer_format)
            for layer, layer_format in self._kv_formats(kv)
        ]
        return NativeState(caches, max_tokens)

    def state_bytes(self, max_tokens: int, kv: KVPlan) -> int:
        """Return the size of a state whose sequence is full."""
        return sum(
            layer.mixer.cache_bytes(max_tokens, layer_format)
            for layer, layer_format in self._kv_formats(kv)
        )

    def _kv_formats(self, kv: KVPlan) -> Iterator[tuple[Layer, LayerFormat]]:
        """Pair each layer with its format, numbered among the layers with keys and values."""
        num_kv_layers, index = sum(layer.mixer.has_kv for layer in self._layers), 0
        for layer in self._layers:
            yield layer, kv.layer(index, num_kv_layers)
            index += layer.mixer.has_kv

    def forward(
        self,
        tokens: NDArray[np.int32],
        state: NativeState,
        logits: Array | None,
        between_layers: Callable[[], None] | None = None,
    ) -> None:
        """Append a chunk of tokens (T,), T <= scratch.max_rows, to the state.

        logits (T, vocab_size) is filled for every token, (1, vocab_size) for the last one, None
        computes none. between_layers is called before each layer; what it raises ends the call.
        """
        try:
            normed = self._layers_forward(tokens, state, between_layers)
        except BaseException:
            state.undo_unfinished()
            raise
        state.position += tokens.shape[0]
        if logits is not None:
            self._head.forward(normed[-logits.shape[0] :], logits)

    def forward_sequences(
        self, tokens: NDArray[np.int32], states: Sequence[NativeState], logits: Array
    ) -> None:
        """Append token b to state b, B <= scratch.max_rows; fill logits (B, vocab_size)."""
        try:
            normed = self._sequences_forward(tokens, states)
        except BaseException:
            for state in states:
                state.undo_unfinished()
                state.release_if_broken()
            raise
        for state in states:
            state.position += 1
        self._head.forward(normed, logits)

    def _sequences_forward(self, tokens: NDArray[np.int32], states: Sequence[NativeState]) -> Array:
        """Return the normalized hidden states (B, H) that the head reads."""
        num_sequences = tokens.shape[0]
        hidden = self._scratch.rows("hidden", num_sequences, self._hidden_size)
        normed = self._scratch.rows("normed", num_sequences, self._hidden_size)
        label_time(TIME_DENSE)
        self._embedding.forward(tokens, hidden)
        self._layers[0].input_norm.forward(hidden, normed)
        positions = [state.position for state in states]
        caches_by_layer = zip(*(state.caches for state in states), strict=True)
        for layer, step, caches in zip(self._layers, self._steps, caches_by_layer, strict=True):
            _, add_and_norm, feed_forward, add_and_norm_for_next = step
            layer.mixer.forward_sequences(caches, positions)
            add_and_norm(num_sequences)
            feed_forward(num_sequences)
            add_and_norm_for_next(num_sequences)
        return normed

    def _layers_forward(
        self,
        tokens: NDArray[np.int32],
        state: NativeState,
        between_layers: Callable[[], None] | None,
    ) -> Array:
        """Return the normalized hidden states (T, H) that the head reads."""
        num_tokens = tokens.shape[0]
        hidden = self._scratch.rows("hidden", num_tokens, self._hidden_size)
        normed = self._scratch.rows("normed", num_tokens, self._hidden_size)
        label_time(TIME_DENSE)
        self._embedding.forward(tokens, hidden)
        self._layers[0].input_norm.forward(hidden, normed)
        for (mix, add_and_norm, feed_forward, add_and_norm_for_next), cache in zip(
            self._steps, state.caches, strict=True
        ):
            if between_layers is not None:
                between_layers()
            mix(num_tokens, cache, state.position)
            add_and_norm(num_tokens)
            feed_forward(num_tokens)
            add_and_norm_for_next(num_tokens)
        return normed
