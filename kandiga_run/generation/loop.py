"""The generation loop: prefill in chunks, then one token at a time, as an iterator.

It knows an `Engine` and nothing underneath it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine import Engine, State
from kandiga_run.engine.stats import RunStats
from kandiga_run.errors import RunError
from kandiga_run.generation.answer import Answer, FinishReason, Token, TokenMask
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.tokenizer.detokenizer import StreamingDetokenizer

__all__ = [
    "FinishReason",
    "GenerateOptions",
    "Generation",
    "GenerationStats",
    "Progress",
    "Token",
    "generate",
]

#: Called after each prefill chunk with (tokens done, tokens in all).
Progress = Callable[[int, int], None]


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
        mask: TokenMask | None = None,
        pause_at: int | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> None:
        self._engine, self._options = engine, options
        self._between_layers = between_layers
        self._pause_at = pause_at
        self._on_progress = on_progress
        self.prompt_tokens = tuple(prompt_tokens)
        self.stats = GenerationStats(reused_tokens=state.position if state else 0)
        limit = self._token_limit(state)
        self._answer = Answer(options, self.prompt_tokens, history, detokenizer, limit, mask)
        self.state = state or engine.new_state(len(prompt_tokens) + limit)
        self._tokens = self._run()

    @property
    def seed(self) -> int:
        """Return the seed in use, drawn when none was given."""
        return self._answer.seed

    @property
    def token_ids(self) -> list[int]:
        """Return the tokens chosen so far."""
        return self._answer.token_ids

    @property
    def text(self) -> str:
        """Return the text given out so far."""
        return self._answer.text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why the answer ended, None until then."""
        return self._answer.finish_reason

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
        started = perf_counter()
        try:
            while True:
                token = self._next_token(logits)
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
        for start, end in _chunks(total, step, self._pause_at):
            chunk = prompt[start:end]
            logits = self._engine.forward(chunk, self.state, between_layers=self._between_layers)
            stats.prompt_tokens += len(chunk)
            self.stats.prompt_tokens += len(chunk)
            self.stats.prefill_seconds = perf_counter() - started
            if self._on_progress:
                self._on_progress(end, total)
        stats.prefill_seconds += self.stats.prefill_seconds
        self.stats.prefill = stats.snapshot().minus(before)
        return logits

    def _next_token(self, logits: NDArray[np.float32]) -> Token:
        started = perf_counter()
        token = self._answer.add(logits[-1])
        self._engine.stats.sampling_seconds += perf_counter() - started
        return token

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
    mask: TokenMask | None = None,
    pause_at: int | None = None,
    between_layers: Callable[[], None] | None = None,
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
        mask: narrows the choice of each token.
        pause_at: end a prefill chunk after so many tokens of the prompt, so that `on_progress` is
            called there.
        between_layers: called while the prompt is read, several times a second; what it raises
            gives the prompt up in the middle of a chunk, see `Engine.forward`.

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
        mask=mask,
        pause_at=pause_at,
        between_layers=between_layers,
    )


def _chunks(total: int, step: int, pause_at: int | None) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of prefill chunks."""
    start = 0
    while start < total:
        end = min(start + step, total)
        if pause_at is not None and start < pause_at < end:
            end = pause_at
        yield start, end
        start = end


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None
