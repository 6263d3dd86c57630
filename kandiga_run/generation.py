"""The generation loop: prefill in chunks, then one token at a time, as an iterator.

It knows an `Engine` and nothing underneath it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kandiga_run.detokenizer import StreamingDetokenizer
from kandiga_run.engine import Engine, State
from kandiga_run.errors import RunError
from kandiga_run.sampling import Sampler, SamplingOptions
from kandiga_run.stats import RunStats
from kandiga_run.stop_strings import StopStrings

FinishReason = Literal["stop", "length"]

#: Called after each prefill chunk with (tokens done, tokens in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class GenerateOptions:
    """What to generate and when to stop."""

    max_tokens: int = 1024
    #: Text that ends the answer; neither it nor what follows is given out.
    stop: tuple[str, ...] = ()
    #: Tokens that end the answer; they give no text.
    stop_token_ids: frozenset[int] = frozenset()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    #: Tokens a prefill step computes together, each expert read once for all of them; by default
    #: what the engine likes best.
    prefill_chunk: int | None = None
    #: Ask for log probabilities, and for this many alternatives a token.
    logprobs: int | None = None
    #: Tokens the model was made for; the answer ends there with "length".
    context_length: int | None = None

    def __post_init__(self) -> None:
        """Raise RunError for values that cannot work."""
        if self.max_tokens < 1:
            raise RunError(f"max_tokens {self.max_tokens}: wanted 1 or more")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise RunError(f"prefill_chunk {self.prefill_chunk}: wanted 1 or more")
        if "" in self.stop:
            raise RunError("stop: an empty string would stop before the first token")

    def answer_limit(self, seen: int, state_tokens: int | None = None) -> int:
        """Return how many tokens may follow `seen` ones in a state that has room for so many.

        Raises RunError when the context or the state has no room for any.
        """
        limit = self.max_tokens
        for context in (self.context_length, state_tokens):
            if context is None:
                continue
            if seen >= context:
                raise RunError(
                    f"the prompt has {seen} tokens and the context {context}: shorten the prompt"
                )
            limit = min(limit, context - seen)
        return limit


@dataclass(frozen=True)
class Token:
    """One sampled token and the text that became certain with it, possibly none.

    A token that ends the answer is given out too, with the last of the text.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass
class GenerationStats:
    """Figures of one generation. Times leave out what the consumer did between tokens."""

    #: Tokens prefilled for this answer ...
    prompt_tokens: int = 0
    #: ... after this many that a kept state already held.
    reused_tokens: int = 0
    #: Every sampled token, the one that ended the answer included.
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    #: From the first token on. The first comes out of the prefill, the last needs no step of its
    #: own: n tokens are n - 1 decode steps.
    decode_seconds: float = 0.0
    time_to_first_token_seconds: float = 0.0
    #: The engine's counters for each phase.
    prefill: RunStats = field(default_factory=RunStats)
    decode: RunStats = field(default_factory=RunStats)

    @property
    def decode_steps(self) -> int:
        """Return how often the model computed a single token."""
        return max(0, self.generated_tokens - 1)

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Return prompt tokens over prefill time, or None when nothing was prefilled."""
        return _rate(self.prompt_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Return decode steps over decode time, or None for an answer of one token."""
        return _rate(self.decode_steps, self.decode_seconds)

    @property
    def bytes_read_per_token(self) -> float | None:
        """Return expert bytes read from disk for each decode step."""
        return self.decode.bytes_read / self.decode_steps if self.decode_steps else None


class Generation(Iterator[Token]):
    """An answer in the making: iterate over it, close it to cancel.

    `finish_reason` is None until the answer ended by itself. `state` can continue: it has seen
    the prompt and every sampled token but the last.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_tokens: Sequence[int],
        options: GenerateOptions,
        *,
        detokenizer: StreamingDetokenizer | None = None,
        state: State | None = None,
        history: Sequence[int] = (),
        on_progress: Progress | None = None,
    ) -> None:
        self._engine, self._options = engine, options
        self._detokenizer = detokenizer
        self._on_progress = on_progress
        self._sampler = Sampler(options.sampling, logprobs=options.logprobs)
        self.prompt_tokens = tuple(prompt_tokens)
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.stats = GenerationStats(reused_tokens=state.position if state else 0)
        self._history = [*history, *prompt_tokens]
        self._limit = self._token_limit(state)
        self.state = state or engine.new_state(len(prompt_tokens) + self._limit)
        self._tokens = self._run()

    @property
    def seed(self) -> int:
        """Return the seed in use, drawn when none was given."""
        return self._sampler.seed

    def __next__(self) -> Token:
        """Return the next token; computing it takes as long as the model takes."""
        return next(self._tokens)

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel. What was generated so far stays; iteration ends."""
        self._tokens.close()

    def _token_limit(self, state: State | None) -> int:
        """Return how many tokens may be sampled; raise RunError when the prompt leaves no room."""
        if not self.prompt_tokens:
            raise RunError("the prompt is empty: there is nothing to continue")
        if state is None:
            return self._options.answer_limit(len(self.prompt_tokens))
        seen = state.position + len(self.prompt_tokens)
        return self._options.answer_limit(seen, state.max_tokens)

    def _run(self) -> Generator[Token, None, None]:
        logits = self._prefill()
        before = self._engine.stats.snapshot()
        stops = StopStrings(self._options.stop)
        started = perf_counter()
        try:
            while True:
                token = self._next_token(logits, stops)
                self._count(perf_counter() - started)
                yield token
                if self.finish_reason:
                    return
                started = perf_counter()
                logits = self._engine.forward(np.array([token.id], dtype=np.int32), self.state)
        finally:
            self.stats.decode = self._engine.stats.snapshot().minus(before)

    def _prefill(self) -> NDArray[np.float32]:
        """Return the logits (1, vocab) after the prompt."""
        stats, total = self._engine.stats, len(self.prompt_tokens)
        prompt = np.asarray(self.prompt_tokens, dtype=np.int32)
        before, started = stats.snapshot(), perf_counter()
        # The last chunk is never empty: a prompt has at least one token.
        step = self._options.prefill_chunk or self._engine.prefill_chunk
        for start in range(0, total, step):
            chunk = prompt[start : start + step]
            logits = self._engine.forward(chunk, self.state)
            stats.prompt_tokens += len(chunk)
            self.stats.prompt_tokens += len(chunk)
            self.stats.prefill_seconds = perf_counter() - started
            if self._on_progress:
                self._on_progress(start + len(chunk), total)
        stats.prefill_seconds += self.stats.prefill_seconds
        self.stats.prefill = stats.snapshot().minus(before)
        return logits

    def _next_token(self, logits: NDArray[np.float32], stops: StopStrings) -> Token:
        """Sample a token, settle whether it ends the answer and which text may be shown."""
        started = perf_counter()
        choice = self._sampler.choose(logits[-1], self._history)
        self._engine.stats.sampling_seconds += perf_counter() - started
        self.token_ids.append(choice.token)
        self._history.append(choice.token)
        if choice.token in self._options.stop_token_ids:
            text, self.finish_reason = "", "stop"
        else:
            text = self._detokenizer.add(choice.token) if self._detokenizer else ""
            if len(self.token_ids) == self._limit:
                self.finish_reason = "length"
        if self.finish_reason and self._detokenizer:
            text += self._detokenizer.finish()
        text, is_stopped = stops.add(text)
        if is_stopped:
            self.finish_reason = "stop"
        elif self.finish_reason:
            text += stops.finish()
        self.text += text
        return Token(choice.token, text, choice.logprob, choice.top_logprobs)

    def _count(self, seconds: float) -> None:
        """Add one token and the time it took to the figures of this answer and of the engine."""
        own, engine = self.stats, self._engine.stats
        own.generated_tokens += 1
        engine.generated_tokens += 1
        if own.generated_tokens == 1:
            own.time_to_first_token_seconds = own.prefill_seconds + seconds
        else:
            own.decode_seconds += seconds
            engine.decode_seconds += seconds


def generate(
    engine: Engine,
    prompt_tokens: Sequence[int],
    options: GenerateOptions,
    *,
    detokenizer: StreamingDetokenizer | None = None,
    state: State | None = None,
    history: Sequence[int] = (),
    on_progress: Progress | None = None,
) -> Generation:
    """Return the generation that follows `prompt_tokens`; nothing is computed before iteration.

    Args:
        engine: computes the model.
        prompt_tokens: what the state has not seen yet, at least one token.
        options: when to stop and how to choose.
        detokenizer: makes the text; without one tokens carry no text and stop strings never match.
        state: a state that has seen the tokens before; by default a fresh one just large enough.
        history: the tokens `state` has seen, for the repetition penalty.
        on_progress: called after each prefill chunk; what it raises cancels the generation and
            leaves the state valid.

    Raises RunError when the prompt leaves no room for an answer, or when logits are not finite.
    """
    return Generation(
        engine,
        prompt_tokens,
        options,
        detokenizer=detokenizer,
        state=state,
        history=history,
        on_progress=on_progress,
    )


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None
