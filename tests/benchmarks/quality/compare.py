"""The same tokens through a reference engine and others, position by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.logits_kl import Comparison, Summary
from kandiga_run.engine import PREFILL_CHUNK, Engine

Tokens = NDArray[np.int32]
#: Called with the number of positions done.
Progress = Callable[[int], None]


def compare_prefill(
    reference: Engine,
    others: Mapping[str, Engine],
    tokens: Tokens,
    *,
    window: int,
    chunk: int = PREFILL_CHUNK,
    progress: Progress | None = None,
) -> dict[str, Summary]:
    """Compare as prompts are computed: many tokens a step.

    The text is cut into windows that know nothing of each other.

    Args:
        tokens: (N,), the text.
        window: tokens of a window; the last one may be shorter.
        chunk: tokens a step.
    """
    pieces = [tokens[start : start + window] for start in range(0, len(tokens), window)]
    return _compare(reference, others, pieces, skipped=0, chunk=chunk, progress=progress)


def compare_decode(
    reference: Engine,
    others: Mapping[str, Engine],
    tokens: Tokens,
    *,
    context: int,
    progress: Progress | None = None,
) -> dict[str, Summary]:
    """Compare as answers are computed: one token a step, after a context.

    Every engine has computed the context itself, so that what it got wrong there counts as well.
    The tokens are the text's: after a difference in one token nothing could be compared any more.

    Args:
        tokens: (N,), the text.
        context: tokens that come before those compared.
    """
    return _compare(reference, others, [tokens], skipped=context, chunk=1, progress=progress)


def _compare(
    reference: Engine,
    others: Mapping[str, Engine],
    windows: list[Tokens],
    *,
    skipped: int,
    chunk: int,
    progress: Progress | None,
) -> dict[str, Summary]:
    comparisons = {name: Comparison() for name in others}
    engines = {"": reference, **others}
    for window in windows:
        states = {name: engine.new_state(len(window)) for name, engine in engines.items()}
        for start, stop in _steps(len(window), skipped, chunk):
            logits = {
                name: engine.forward(window[start:stop], states[name], logits="all")
                for name, engine in engines.items()
            }
            if start >= skipped:
                for name, comparison in comparisons.items():
                    comparison.add(logits[""], logits[name], window[start + 1 : stop + 1])
            if progress:
                progress(stop - start)
    return {name: comparison.summary() for name, comparison in comparisons.items()}


def _steps(total: int, skipped: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Yield first and last token of each step: the skipped ones as a prompt, then the others."""
    for first, last, size in ((0, skipped, PREFILL_CHUNK), (skipped, total, chunk)):
        for start in range(first, last, size):
            yield start, min(start + size, last)
