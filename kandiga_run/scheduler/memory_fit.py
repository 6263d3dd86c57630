"""How many answers may be computed at once, and how prompts are cut, within a memory budget."""

from __future__ import annotations

from kandiga_run.engine import BudgetedEngine, Engine
from kandiga_run.errors import RunError
from kandiga_run.scheduler.kept_prompts import CacheOptions
from kandiga_run.sizes import format_size

#: Answers computed together unless told otherwise.
MAX_RUNNING = 4
#: Tokens of a chunk of a prompt: while it is read others wait, and only whole ones are kept. Where
#: experts are read from disk, half of what the engine likes best: that is 1024, which reads a
#: prompt 1.6 times as fast as 512 does.
CHUNK_TOKENS = 512


def fit_memory(
    engine: Engine,
    cache: CacheOptions,
    context_tokens: int,
    wanted: int | None,
    prefill_chunk: int | None,
) -> tuple[int, int]:
    """Return how many answers run together, and how many tokens a chunk of a prompt has.

    prefill_chunk: None means what suits the engine.
    wanted: None means up to MAX_RUNNING, fewer when full contexts of so many have no room. The
    engine keeps that memory from here on. RunError when it cannot, with the budget that could.
    """
    chunk_tokens = prefill_chunk or max(CHUNK_TOKENS, engine.prefill_chunk // 2)
    chunk_tokens = min(engine.prefill_chunk, chunk_tokens)
    if not isinstance(engine, BudgetedEngine) or engine.budget_bytes is None:
        return wanted or MAX_RUNNING, chunk_tokens
    cache_bytes = cache.memory_for(engine)
    for count in [wanted] if wanted else range(MAX_RUNNING, 0, -1):
        try:
            room = engine.reserve(cache_bytes, count, context_tokens)
        except RunError as error:
            if count in (wanted, 1):
                answers = f"{count} answers" if count > 1 else "an answer"
                raise RunError(
                    f"no room for {answers} of {context_tokens} tokens: {error}; or allow a "
                    "shorter context, fewer answers at once, or less than "
                    f"{format_size(cache_bytes)} of kept prompts, which count as the process's"
                ) from error
        else:
            return count, min(chunk_tokens, room)
    raise AssertionError("the last try returns or raises")
