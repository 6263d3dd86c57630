"""The measurements of one engine in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from kandiga_run.bench.depth import Filling, reach_depth
from kandiga_run.bench.request import Request
from kandiga_run.bench.samples import Sample
from kandiga_run.engine import PREFILL_CHUNK, Engine, State
from kandiga_run.engine.stats import RunStats
from kandiga_run.engine.time_split import time_split_json
from kandiga_run.generation.sampling import Sampler, SamplingOptions

Tokens = NDArray[np.int32]
#: what is being measured, how many of its samples are taken, of how many
Progress = Callable[[str, int, int], None]

_WARM_UP_SECONDS = 10.0
_WARM_UP_STEPS = 4
# A decode measurement of fewer steps says more about the first step than about decoding.
_LEAST_STEPS = 4
# After so many decode measurements a fresh state: a depth should not grow much while measured.
_MOST_RUNS_OF_A_STATE = 8


class TokenSource:
    """Token ids to compute: of a given text over and over, or random ones of the vocabulary."""

    def __init__(self, tokens: Sequence[int], vocab_size: int, seed: int) -> None:
        self._tokens = np.asarray(tokens, np.int32)
        self._next = 0
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(seed)

    def take(self, count: int) -> Tokens:
        """Return the next `count` ids."""
        if not self._tokens.size:
            return self._rng.integers(0, self._vocab_size, count, np.int32)
        places = np.arange(self._next, self._next + count) % self._tokens.size
        self._next += count
        return self._tokens[places]


class Measurements:
    """Measures one engine, again and again."""

    def __init__(self, engine: Engine, request: Request, tokens: TokenSource) -> None:
        self._engine = engine
        self._request = request
        self._tokens = tokens
        self._sampler = Sampler(SamplingOptions(temperature=0))
        self._rng = np.random.default_rng(request.seed)

    def first_token(self) -> int:
        """Compute a short prompt and choose the token after it; return its id."""
        prompt = self._tokens.take(self._request.start_tokens)
        state = self._engine.new_state(prompt.size + 1)
        logits = self._engine.forward(prompt, state)
        return self._sampler.choose(logits[-1], []).token

    def warm_up(self) -> None:
        """Use every expert once."""
        state = self._engine.new_state(PREFILL_CHUNK + 1)
        self._engine.forward(self._tokens.take(PREFILL_CHUNK), state)

    def fill_memory(self) -> None:
        """Decode until as many experts were read as can be kept: a prompt leaves few of them."""
        deadline = perf_counter() + _WARM_UP_SECONDS
        before = self._engine.stats.bytes_read
        while perf_counter() < deadline:
            state = self._engine.new_state(_WARM_UP_STEPS)
            at_start = self._engine.stats.bytes_read
            self._decode(state, _WARM_UP_STEPS)
            read = self._engine.stats.bytes_read
            if read == at_start or read - before >= self._request.warm_up_bytes:
                return

    def prefills(self, size: int, progress: Progress) -> Iterator[Sample]:
        """Yield measurements of a prefill of `size` tokens."""
        for _ in self._repeats(f"prefill {size}", progress):
            state = self._engine.new_state(size)
            yield self._prefill(state, self._tokens.take(size))

    def decodes(self, depth: int, progress: Progress) -> Iterator[Sample]:
        """Yield measurements of decode steps that begin after `depth` tokens."""
        steps = self._request.decode_tokens
        what = f"decode at depth {depth}"
        progress(what, 0, self._request.repeats)
        state, filling = self._at_depth(depth)
        if self._request.cache == "warm":
            # The first step at a depth touches memory that was just made.
            steps = self._steps_in(self._request.seconds / self._request.repeats, state)
        for _ in self._repeats(what, progress):
            if state.max_tokens - state.position < steps:
                state, filling = self._at_depth(depth)
            yield self._decode_sample(state, depth, steps, filling)

    def _at_depth(self, depth: int) -> tuple[State, Filling]:
        """Return a state of so many tokens with room for some measurements."""
        runs = min(self._request.repeats, _MOST_RUNS_OF_A_STATE)
        state = self._engine.new_state(depth + 1 + runs * self._request.decode_tokens)
        tokens = self._tokens.take(depth)
        return state, reach_depth(self._engine, state, tokens, real=self._request.real_depth)

    def _steps_in(self, seconds: float, state: State) -> int:
        """Return how many steps fit a time, by the time of one; not all too few."""
        wanted = self._request.decode_tokens
        fitting = int(seconds / max(self._decode(state, 1), 1e-9))
        return min(wanted, max(_LEAST_STEPS, fitting))

    def _repeats(self, what: str, progress: Progress) -> Iterator[int]:
        deadline = perf_counter() + self._request.seconds
        for number in range(self._request.repeats):
            if number and perf_counter() > deadline:
                return
            progress(what, number, self._request.repeats)
            yield number

    def _prefill(self, state: State, tokens: Tokens) -> Sample:
        before, read_before = self._engine.stats.snapshot(), process_read_bytes()
        started = perf_counter()
        self._engine.forward(tokens, state)
        seconds = perf_counter() - started
        return self._sample(
            "prefill", tokens.size, state, tokens.size, seconds, before, read_before
        )

    def _decode_sample(self, state: State, depth: int, steps: int, filling: str) -> Sample:
        before, read_before = self._engine.stats.snapshot(), process_read_bytes()
        limit = self._request.seconds if self._request.cache == "cold" else None
        computed = state.position
        seconds = self._decode(state, steps, limit)
        computed = state.position - computed
        sample = self._sample(
            "decode", depth, state, computed, seconds, before, read_before, filling
        )
        return replace(sample, in_place_bytes_per_second=self._weights_bytes_per_second())

    def _weights_bytes_per_second(self) -> float | None:
        """Return how fast memory gives a token's weights; None for an engine that cannot say."""
        measure = getattr(self._engine, "weights_bytes_per_second", None)
        return None if measure is None or self._request.cache == "cold" else measure(self._rng)

    def _decode(self, state: State, steps: int, limit_seconds: float | None = None) -> float:
        """Compute so many tokens one by one, choosing after each; return the seconds.

        The next token is one of ours, not the chosen one: greedy text runs in circles, and in
        circles the experts are always the same. Ends early after `limit_seconds`.
        """
        tokens = self._tokens.take(steps)
        started = perf_counter()
        for number in range(steps):
            logits = self._engine.forward(tokens[number : number + 1], state)
            chosen_at = perf_counter()
            self._sampler.choose(logits[-1], [])
            now = perf_counter()
            self._engine.stats.sampling_seconds += now - chosen_at
            if limit_seconds is not None and now - started > limit_seconds:
                break
        return perf_counter() - started

    def _sample(
        self,
        kind: str,
        size: int,
        state: State,
        tokens: int,
        seconds: float,
        before: RunStats,
        read_before: int | None,
        filling: str = "empty",
    ) -> Sample:
        run, read_after = self._engine.stats.minus(before), process_read_bytes()
        split = time_split_json(run)
        split["other"] += max(0.0, seconds - run.forward_seconds - run.sampling_seconds)
        return Sample(
            kind="prefill" if kind == "prefill" else "decode",
            size=size,
            tokens=tokens,
            seconds=seconds,
            bytes_read=run.bytes_read,
            process_read_bytes=(
                None if read_before is None or read_after is None else read_after - read_before
            ),
            experts_requested=run.experts_requested,
            experts_read=run.experts_read,
            time_split=split,
            filling=filling,
            state_bytes=state.nbytes,
            kv_format=state.kv_format,
        )


def process_read_bytes() -> int | None:
    """Return what this process made the disk read so far, page faults included; None if unknown."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("read_bytes:")]
    return int(found[0]) if found else None
