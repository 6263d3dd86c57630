"""The mlx engine: mlx-lm's model on its device, routed experts streamed from the container."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from cython_kernels import isa, set_num_threads
from kandiga_run.container import Model
from kandiga_run.engine import PREFILL_CHUNK, EngineOptions, State
from kandiga_run.engine.checks import check_max_tokens, checked_tokens, resolve_top_k
from kandiga_run.engine.stats import RunStats
from kandiga_run.engine.time_split import timed_forward
from kandiga_run.errors import RunError
from kandiga_run.experts.owned import smallest_budget
from kandiga_run.experts.store import open_store_for
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.prompt_cache import StateIdentity
from kandiga_run.kv.snapshot import StatePiece
from kandiga_run.memory.budget import FixedBytes, bytes_for_experts
from kandiga_run.memory.use import memory_use
from kandiga_run.mlx_engine.choose import ExpertsOn
from kandiga_run.mlx_engine.kv_attention import install
from kandiga_run.mlx_engine.network import Network
from kandiga_run.mlx_engine.on_mlx import WAVE_BYTES
from kandiga_run.mlx_engine.pieces import fill, piece_of
from kandiga_run.mlx_engine.state import MlxState


class MlxEngine:
    """Computes any mlx-lm family whose experts sit in SwitchGLU or SwitchMLP modules.

    experts_on: how many layers compute their experts which way, such as {"kernels": 24}.
    """

    name = "mlx"
    prefill_chunk = PREFILL_CHUNK

    def __init__(
        self,
        model: Model,
        options: EngineOptions,
        *,
        experts_on: ExpertsOn = "auto",
        float32: bool | None = None,
        wave_bytes: int = WAVE_BYTES,
    ) -> None:
        """Build the network; the engine owns the model it is given.

        Args:
            experts_on, float32, wave_bytes: see `Network`.

        Raises RunError when mlx-lm cannot build the model, when its experts cannot be streamed or
        when the memory budget cannot work.
        """
        if options.arithmetic not in ("auto", "exact"):
            raise RunError(
                f"--arithmetic {options.arithmetic}: the mlx engine uses floating point only; "
                "use --engine native, or leave --arithmetic out"
            )
        self._kv = _kv_plan(options)
        self.stats = RunStats(kv=self._kv.name)
        self.vocab_size = _vocab_size(model.container.config)
        self._model = model
        self._budget_bytes = options.memory_bytes
        #: of the budget, kept for whoever called `reserve`
        self._reserved_bytes = 0
        if self._budget_bytes is not None:
            wave_bytes = min(wave_bytes, self._budget_bytes // 8)
            mx.set_cache_limit(wave_bytes)  # freed buffers that mlx keeps are memory too
        if options.num_threads is not None:
            set_num_threads(options.num_threads)
        self._take_top_k(options)
        use = memory_use()
        self._own_bytes = use.anonymous_bytes or use.resident_bytes
        self._store = open_store_for(model, options, self.stats)
        try:
            self._network: Network | None = Network(
                model,
                top_k=self._top_k,
                experts_on=experts_on,
                float32=float32,
                wave_bytes=wave_bytes,
            )
            model.dense_watch.start_rest()
            self._network.read_from(self._store)
            install(self._network.module)
            self.experts_on = self._network.experts_on
            self._states: weakref.WeakSet[MlxState] = weakref.WeakSet()
            self._share_memory()
        except BaseException:
            self._store.close()
            raise

    def new_state(self, max_tokens: int) -> MlxState:
        """Return an empty state; mlx-lm's caches grow as tokens come, up to `max_tokens`."""
        check_max_tokens(max_tokens)
        state = MlxState(self._open_network().module, max_tokens, self._kv)
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

        Long inputs are computed in chunks of PREFILL_CHUNK. `between_layers` is called before each:
        mlx-lm's caches of some layers could not be brought back from the middle of one.
        """
        if not isinstance(state, MlxState):
            raise TypeError(f"state is a {type(state).__name__}, wanted one of this engine's own")
        tokens = checked_tokens(tokens, state, self.vocab_size)
        chunks = np.split(tokens, range(PREFILL_CHUNK, tokens.size, PREFILL_CHUNK))
        wanted = chunks if logits == "all" else chunks[-1:]
        with (
            self._model.files.used(),
            _compiling_safely(self.stats.num_experts_per_token),
            self._naming_mlx(),
            timed_forward(self.stats),
        ):
            rows = []
            for index, chunk in enumerate(chunks):
                if between_layers is not None:
                    between_layers()
                is_wanted = index >= len(chunks) - len(wanted)
                rows.append(self._forward(chunk, state, logits=logits if is_wanted else None))
            self._model.dense_watch.require()
        return np.concatenate([row for row in rows if row is not None])

    @property
    def state_identity(self) -> StateIdentity:
        """Return what pieces of a state must agree in to give the same bits when put together."""
        return StateIdentity(
            self._model.container.manifest.set_root,
            self.stats.num_experts_per_token,
            f"mlx {version('mlx')} {mx.default_device()} {isa()} {self.experts_on}",
            self.stats.kv,
        )

    def take_piece(self, state: State, begin: int, *, can_be_last: bool = True) -> StatePiece:
        """Copy what a state holds: all of it, since only mlx-lm knows which part is whose."""
        if not isinstance(state, MlxState):
            raise TypeError(f"state is a {type(state).__name__}, wanted one of this engine's own")
        layers = (piece_of(cache, left_out=not can_be_last) for cache in state.cache)
        return StatePiece(begin, state.position, tuple(layers))

    def new_state_from(self, pieces: Sequence[StatePiece], max_tokens: int) -> MlxState:
        """Return a state that has seen the tokens of all pieces, which the last one holds.

        Raises RunError when they do not fit this engine.
        """
        state, last = self.new_state(max_tokens), pieces[-1]
        try:
            for cache, piece in zip(state.cache, last.layers, strict=True):
                fill(cache, piece)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"a kept state cannot be used: {error}") from error
        state.position = last.end
        self._share_memory()
        return state

    @property
    def budget_bytes(self) -> int | None:
        """Return the memory budget, None when there is none."""
        return self._budget_bytes

    def reserve(self, nbytes: int, num_states: int, max_tokens: int) -> int:
        """Keep memory for the caller's own `nbytes`; states count as they grow.

        Returns how many tokens a prefill chunk may have. Raises RunError when the budget has no
        room, with the smallest that works.
        """
        self._reserved_bytes = nbytes
        self._share_memory()
        return PREFILL_CHUNK

    def close(self) -> None:
        """Release threads, memory and files."""
        if self._network is None:
            return
        self._network = None
        self._store.close()
        self._model.close()

    def _take_top_k(self, options: EngineOptions) -> None:
        model = self._model
        used = resolve_top_k(options.num_experts_per_token, model.top_k, model.max_num_experts)
        self.stats.top_k = model.top_k
        self.stats.num_experts_per_token = used
        self._top_k = None if used == model.top_k else used

    def _forward(
        self, tokens: NDArray[np.int32], state: MlxState, logits: Literal["all", "last"] | None
    ) -> NDArray[np.float32] | None:
        network = self._open_network()
        network.head.only_last = logits != "all"
        held_bytes = state.nbytes
        output = network.module(mx.array(tokens)[None], cache=state.cache)[0].astype(mx.float32)
        output = output[-1:] if logits == "last" else output
        # mlx computes what is evaluated and no more: without logits, no head.
        state.check_read()
        mx.eval(state.arrays() if logits is None else (output, state.arrays()))
        state.position += tokens.size
        if state.nbytes != held_bytes:
            self._share_memory()
        return None if logits is None else np.array(output)

    @contextmanager
    def _naming_mlx(self) -> Iterator[None]:
        """Turn what mlx cannot do on this machine, such as Metal kernels, into one line."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"mlx cannot compute this model ({self._model.architecture}) on "
                f"{mx.default_device()}: {error}"
            ) from error

    def _open_network(self) -> Network:
        if self._network is None:
            raise RunError("the engine is closed")
        return self._network

    def _share_memory(self) -> None:
        """Leave to the experts what the budget has beside everything else.

        Only mlx-lm knows how large a family's cache becomes, so its real size counts, each time
        it has grown.
        """
        if self._budget_bytes is None:
            return
        network = self._open_network()
        fixed = FixedBytes(
            process=self._own_bytes + self._reserved_bytes,
            dense_weights=network.nbytes,
            buffers=network.buffer_bytes(PREFILL_CHUNK),
            kv_cache=sum(state.nbytes for state in self._states),
        )
        least_bytes = smallest_budget(self._model.container)
        self._store.resize(bytes_for_experts(self._budget_bytes, fixed, least_bytes))


def _kv_plan(options: EngineOptions) -> KVPlan:
    """Return how keys and values are held. "auto" leaves them as mlx-lm does.

    Here a compressed cache saves memory and costs time, so nobody is given it unasked.
    """
    if options.kv_qjl:
        raise RunError("--kv-qjl: the mlx engine has no QJL stage; use --engine native")
    choice = "fp16" if options.kv == "auto" else options.kv
    return KVPlan(choice, np.dtype(np.float16), protected_layers=options.kv_protect)


def _vocab_size(config: dict[str, Any]) -> int:
    """Return the rows of the embedding; phixtral calls them num_vocab."""
    for values in (config.get("text_config") or {}, config):
        for key in ("vocab_size", "num_vocab"):
            if key in values:
                return int(values[key])
    raise RunError("config.json: vocab_size is missing, wanted the number of tokens")


@contextmanager
def _compiling_safely(num_experts_per_token: int) -> Iterator[None]:
    """Keep mlx from compiling graphs where that crashes.

    mlx 0.32 on the CPU: a shapeless compiled function that sums over an axis of length one, such
    as bailing_moe's sum over K = 1 experts, ends the process with a segmentation fault.
    """
    if num_experts_per_token != 1 or mx.default_device() != mx.cpu:
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
