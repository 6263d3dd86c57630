"""The native engine: a decoder, its expert store, and the memory both may use."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cython_kernels import isa, set_num_threads
from kandiga_run.background import BackgroundJob, GaveUp
from kandiga_run.container import Model
from kandiga_run.engine import PREFILL_CHUNK, EngineOptions, State
from kandiga_run.engine.arithmetic import native_arithmetic
from kandiga_run.engine.checks import check_max_tokens, checked_tokens, resolve_top_k
from kandiga_run.engine.stats import RunStats
from kandiga_run.engine.time_split import timed_forward
from kandiga_run.errors import RunError
from kandiga_run.experts.owned import smallest_budget
from kandiga_run.experts.store import open_store_for
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.prompt_cache import StateIdentity, read_prompt_cache, save_prompt_cache
from kandiga_run.kv.recurrent import RecurrentState
from kandiga_run.kv.snapshot import StatePiece, put_together, take_piece
from kandiga_run.memory.budget import FixedBytes
from kandiga_run.memory.use import memory_use
from kandiga_run.native.architectures import ARCHITECTURES
from kandiga_run.native.builder import Builder
from kandiga_run.native.decoder import Decoder
from kandiga_run.native.dense_copy import DenseCopy
from kandiga_run.native.dense_move import DenseMove
from kandiga_run.native.logits import Logits
from kandiga_run.native.memory_plan import FEW_ROWS, MANY_ROWS, MemoryPlan
from kandiga_run.native.reading_alone import bytes_per_second, dense_extents, expert_extents
from kandiga_run.native.rows_as_alone import rows_as_alone
from kandiga_run.native.scratch import Scratch
from kandiga_run.native.state import NativeState
from kandiga_run.native.token_work import TokenWork, expert_work
from kandiga_run.native.warm import bring_in_dense, expect_huge_pages, expect_single_rows
from kandiga_run.native.weights import Weights

_MIB = 1 << 20
# Code pages and small objects that the first tokens touch: 4 to 6 MB measured on x86-64 Linux.
_LATE_BYTES = 8 * _MIB


class NativeEngine:
    """Computes one model on the CPU. Owns the model it is given."""

    name = "native"

    def __init__(self, model: Model, options: EngineOptions) -> None:
        self.stats = RunStats()
        self._model = model
        self._options = options
        # Resident, not anonymous: the kernel also charges the libraries' pages to this process.
        self._own_bytes = memory_use().resident_bytes + _LATE_BYTES
        if options.num_threads is not None:
            set_num_threads(options.num_threads)
        # With all dense weights there; None where the system does not say.
        self._built_bytes: int | None = None
        #: of the budget, kept for whoever called `reserve`
        self._reserved_bytes = 0
        self._store = open_store_for(model, options, self.stats)
        try:
            self._build()
        except BaseException:
            self._store.close()
            raise
        self._has_computed = False

    def _count_others(self) -> None:
        """Count as our own what the caller took after the engine was built, before it computed.

        The tokenizer, above all: 40 MB for a vocabulary of 49 152.
        """
        if self._has_computed or self._options.memory_bytes is None:
            return
        self._dense.wait()
        now = memory_use().anonymous_bytes
        if now is not None and self._built_bytes is not None:
            self._own_bytes += max(0, now - self._built_bytes)
            self._built_bytes = now

    def _build(self) -> None:
        model, options = self._model, self._options
        self.stats.arithmetic = arithmetic = native_arithmetic(options.arithmetic)
        # Beside mapped experts a copy is made later, by DenseMove.
        copy = DenseCopy(model) if self._store.residency == "owned" else None
        weights = Weights(model, arithmetic, copy)
        if copy is None:
            expect_huge_pages(model)
        else:
            expect_single_rows(model, model.dense)
        rows = MANY_ROWS if self._store.residency == "owned" else PREFILL_CHUNK
        scratch = Scratch(rows)
        builder = Builder(model, weights, self._store, scratch, options.num_experts_per_token)
        self._decoder: Decoder | None = ARCHITECTURES[model.architecture](builder)
        self.vocab_size = self._decoder.vocab_size
        self._logits = Logits(self.vocab_size)
        self.stats.top_k = model.top_k
        self.stats.num_experts_per_token = resolve_top_k(
            options.num_experts_per_token, model.top_k, model.max_num_experts
        )
        dtype = _kv_dtype(model, options.kv_dtype)
        self._kv = KVPlan(options.kv, dtype, options.kv_qjl, options.kv_protect)
        self.stats.kv = self._kv.name
        self._weights = weights
        self._scratch = scratch
        self._scratch_bytes = scratch.bytes_for(FEW_ROWS)
        self.prefill_chunk = rows
        self._plan = MemoryPlan(
            options.memory_bytes, scratch, self._store, smallest_budget(model.container)
        )
        self._states: weakref.WeakSet[NativeState] = weakref.WeakSet()
        self._share_memory(options.state_tokens)
        before_bytes = memory_use().anonymous_bytes
        copied_bytes = 0 if copy is None else weights.nbytes
        if before_bytes is not None:
            self._built_bytes = before_bytes + copied_bytes
        self._dense_move = DenseMove(model, weights)
        # Whoever opens a model reads its tokenizer meanwhile.
        self._dense = BackgroundJob("dense-weights", partial(self._bring_in_dense, copy))

    def _bring_in_dense(self, copy: DenseCopy | None, gave_up: GaveUp) -> None:
        weights = self._weights
        if copy is None:
            bring_in_dense(self._model, weights.used, gave_up)
        else:
            copy.fill(weights.used - weights.by_row, gave_up)
        if not gave_up():
            self._model.dense_watch.start_rest()
            if copy is None and self._dense_move.has_room():
                self._dense_move.start()

    def new_state(self, max_tokens: int) -> NativeState:
        """Return an empty sequence; RunError when the memory budget has no room for it."""
        check_max_tokens(max_tokens)
        self._count_others()
        self._share_memory(max_tokens)
        state = self._open_decoder().new_state(max_tokens, self._kv)
        self._states.add(state)
        return state

    def forward(
        self,
        tokens: NDArray[np.int32],
        state: State,
        *,
        logits: Literal["all", "last"] = "last",
        between_layers: Callable[[], None] | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens (T,) to the state; return logits (T, vocab_size), or (1, vocab_size).

        Long inputs are computed in chunks, the largest that memory has room for. What
        `between_layers` raises leaves the state as after the last whole chunk; a hybrid model's is
        broken until it goes back to a mark.
        """
        self._has_computed = True
        decoder = self._open_decoder()
        state = self._usable(state)
        self._wait_for_dense()
        tokens = checked_tokens(tokens, state, self.vocab_size)
        num_tokens = tokens.shape[0]
        num_rows = num_tokens if logits == "all" else 1
        out = self._logits.rows(num_rows)
        with (
            self._model.files.used(),
            timed_forward(self.stats),
            self._plan.chunk_rows(num_tokens) as rows,
        ):
            for start in range(0, num_tokens, rows):
                end = min(start + rows, num_tokens)
                rows_out: NDArray[np.float32] | None = out[start:end]
                if logits != "all":
                    rows_out = out if end == num_tokens else None
                decoder.forward(tokens[start:end], state, rows_out, between_layers)
            self._model.dense_watch.require()
        return out

    def forward_sequences(
        self, tokens: Sequence[int], states: Sequence[State]
    ) -> NDArray[np.float32]:
        """Append token b to state b, all states different; return logits (B, vocab_size).

        Each row is, bit for bit, what `forward` would have given for that sequence alone. An expert
        that several sequences use is read once.
        """
        own = [self._usable(state) for state in states]
        if len(set(map(id, own))) != len(own):
            raise ValueError("the same state twice in one step")
        if len(tokens) != len(own) or not own:
            raise ValueError(f"{len(tokens)} tokens for {len(own)} states")
        ids = np.concatenate(
            [
                checked_tokens(np.array([token], dtype=np.int32), state, self.vocab_size)
                for token, state in zip(tokens, own, strict=True)
            ]
        )
        self._has_computed = True
        decoder = self._open_decoder()
        self._wait_for_dense()
        out = np.empty((len(own), self.vocab_size), np.float32)
        with self._model.files.used(), timed_forward(self.stats), rows_as_alone():
            for start in range(0, len(own), FEW_ROWS):
                some = slice(start, start + FEW_ROWS)
                decoder.forward_sequences(ids[some], own[some], out[some])
            self._model.dense_watch.require()
        return out

    def _wait_for_dense(self) -> None:
        self._dense.wait()
        self._dense_move.take()

    def can_go_on(self, state: State) -> bool:
        """Whether a state is whole: it has not been lost in a call that failed."""
        return isinstance(state, NativeState) and not state.is_broken

    def memory_items(self) -> dict[str, int]:
        """Return bytes of private memory by use: see `kandiga_run.memory.items`."""
        is_copied = self._store.residency == "owned" or self._dense_move.is_taken
        buffers = self._scratch.bytes_for(self._plan.most_rows)
        return {
            "experts": self._store.held_bytes,
            "dense_weights": self._weights.nbytes if is_copied else 0,
            "kv_cache": sum(state.nbytes for state in self._states),
            "buffers": buffers + self._logits.nbytes,
        }

    def token_work(self, depth: int) -> TokenWork:
        """Return what one token needs that follows `depth` others."""
        used = self.stats.num_experts_per_token
        expert_bytes, expert_multiply_adds = expert_work(self._model, used)
        head = self.vocab_size * self._model.text_config.positive("hidden_size")
        return TokenWork(
            dense_bytes=self._weights.nbytes,
            expert_bytes=expert_bytes,
            bytes_per_expert=expert_bytes / (used * max(1, len(self._model.container.layers))),
            state_bytes=self._open_decoder().state_bytes(depth, self._kv),
            dense_multiply_adds=self._weights.multiply_adds - head,
            head_multiply_adds=head,
            expert_multiply_adds=expert_multiply_adds,
        )

    def weights_bytes_per_second(self, rng: np.random.Generator) -> float | None:
        """Return how fast the weights of a token are read, in place, when nothing is computed.

        Its experts are drawn by `rng`; None when not all of them are in memory.
        """
        used, container = self.stats.num_experts_per_token, self._model.container
        chosen = []
        for layer in container.layers:
            drawn = rng.permutation(container.num_experts(layer)).astype(np.int32)
            chosen.append(drawn[:used])
        experts = expert_extents(self._model, self._store, chosen)
        if experts is None:
            return None
        dense = dense_extents(matrix for matrix, _ in self._weights.matrices)
        return bytes_per_second([*dense, *experts])

    def save_state(self, state: State, tokens: Sequence[int], path: Path) -> None:
        """Write a state, which has seen `tokens`, to a prompt cache file."""
        if not isinstance(state, NativeState) or state.is_broken:
            raise RunError("only a whole state of this engine can be saved")
        if len(tokens) != state.position:
            raise ValueError(f"{len(tokens)} tokens, the state has seen {state.position}")
        save_prompt_cache(path, state.caches, tokens, self._identity())

    def load_state(self, path: Path, max_tokens: int) -> tuple[NativeState, list[int]]:
        """Return the state of a prompt cache file, and the tokens it has seen.

        Raises RunError for a file that is damaged, of another model, of other settings, or longer
        than `max_tokens`.
        """
        tokens, saved = read_prompt_cache(path, self._identity())
        if len(tokens) > max_tokens:
            raise RunError(
                f"{path}: {len(tokens)} tokens, there is room for {max_tokens}: use a larger "
                "--context"
            )
        state = self.new_state(max_tokens)
        saved.load_into(state.caches)
        lengths = {c.length for c in state.caches if not isinstance(c, RecurrentState)}
        if lengths - {len(tokens)}:
            raise RunError(f"{path}: layers of {sorted(lengths)} tokens, wanted {len(tokens)}")
        state.position = len(tokens)
        return state, tokens

    @property
    def state_identity(self) -> StateIdentity:
        """Return what pieces of a state must agree in to give the same bits when put together."""
        own = self._identity()
        return replace(
            own, arithmetic=f"{own.arithmetic} {isa()}", kv=f"{own.kv} {self._kv.dtype.name}"
        )

    def take_piece(self, state: State, begin: int, *, can_be_last: bool = True) -> StatePiece:
        """Copy what a state holds of its tokens from `begin` on.

        can_be_last: also copy what only helps whoever goes on from here: recurrent state, and keys
        and values that are coded.
        """
        own = self._usable(state)
        return take_piece(own.caches, begin, own.position, can_be_last=can_be_last)

    def new_state_from(self, pieces: Sequence[StatePiece], max_tokens: int) -> NativeState:
        """Return a state that has seen the tokens of all pieces, which follow each other from 0 on.

        Raises RunError when they do not fit this engine, or memory has no room for the state.
        """
        state = self.new_state(max_tokens)
        try:
            state.position = put_together(pieces, state.caches)
        except ValueError as error:
            raise RunError(f"a kept state cannot be used: {error}") from error
        return state

    @property
    def budget_bytes(self) -> int | None:
        """Return the memory budget, None when there is none."""
        return self._options.memory_bytes

    def reserve(self, nbytes: int, num_states: int, max_tokens: int) -> int:
        """Keep memory for the caller's own `nbytes` and for so many full states at once.

        Returns how many tokens a prefill chunk may then have; chunks of no more are not cut further
        from here on. Raises RunError when the budget has no room, with the smallest that works.
        """
        self._count_others()
        self._reserved_bytes = nbytes
        self._share_memory(*[max_tokens] * num_states)
        return self._plan.keep_chunks(self.prefill_chunk)

    def _usable(self, state: State) -> NativeState:
        if not isinstance(state, NativeState):
            raise TypeError(f"state is a {type(state).__name__}, wanted one of this engine's own")
        if state.is_broken:
            raise RunError("an earlier call on this state failed halfway; start a new one")
        return state

    def _identity(self) -> StateIdentity:
        return StateIdentity(
            self._model.container.manifest.set_root,
            self.stats.num_experts_per_token,
            self.stats.arithmetic,
            self.stats.kv,
        )

    def close(self) -> None:
        """Release threads, memory and files."""
        if self._decoder is None:
            return
        self._decoder = None  # its matrices are views of the mapped container
        self._dense.close()
        self._dense_move.close()
        self._weights.matrices.clear()  # those that were not moved are such views too
        self._store.close()
        self._model.close()

    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            raise RunError("the engine is closed")
        return self._decoder

    def _share_memory(self, *new_state_tokens: int) -> None:
        """Leave to the experts what the budget has beside everything else, new states included.

        States that are alive count in full, as if their sequences had reached max_tokens: the
        budget holds at the end of a conversation too.
        """
        if self._options.memory_bytes is None:
            return
        decoder = self._open_decoder()
        alive = (state.max_tokens for state in self._states if state.caches)
        lengths = [*new_state_tokens, *alive]
        tokens = sum(lengths)
        fixed = FixedBytes(
            process=self._own_bytes + self._reserved_bytes,
            dense_weights=self._weights.nbytes + self._weights.touched_bytes(tokens),
            buffers=self._scratch_bytes,
            kv_cache=sum(decoder.state_bytes(length, self._kv) for length in lengths),
        )
        self._plan.share(fixed, kv_tokens=tokens)


def _kv_dtype(model: Model, choice: Literal["auto", "f16", "f32"]) -> np.dtype[np.generic]:
    """Return the dtype of the KV cache: by default as precise as the checkpoint's own."""
    if choice == "auto":
        norms = [tensor for name, tensor in model.dense.items() if name.endswith("norm.weight")]
        choice = "f32" if any(tensor.dtype == "f32" for tensor in norms) else "f16"
    return np.dtype(np.float32 if choice == "f32" else np.float16)
