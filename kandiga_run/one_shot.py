"""`kandiga-run run`: one prompt, one answer."""

from __future__ import annotations

from typing import Any

from kandiga_run.engine import Engine
from kandiga_run.generation import GenerateOptions, Generation, generate
from kandiga_run.output import Output
from kandiga_run.prompts import Prompts
from kandiga_run.report import stats_json, stats_rows, usage_json


def run_once(
    engine: Engine,
    prompts: Prompts,
    prompt_tokens: list[int],
    options: GenerateOptions,
    output: Output,
    *,
    model: str,
    shows_stats: bool = False,
) -> Generation:
    """Stream the answer to `output`, then its figures; return the finished generation."""

    def on_progress(done: int, total: int) -> None:
        output.progress("reading the prompt", done, total)

    generation = generate(
        engine,
        prompt_tokens,
        options,
        detokenizer=prompts.detokenizer(),
        on_progress=on_progress,
    )
    with generation:
        for token in generation:
            output.text(token.text)
    output.clear_progress()
    output.end_text()
    if generation.finish_reason == "length":
        output.notice(f"the answer ends at its limit of {len(generation.token_ids)} tokens")
    if output.is_json:
        output.json(_result(model, engine, generation))
    if shows_stats:
        output.table("figures", stats_rows(engine, generation.state, generation.stats))
    return generation


def prompt_tokens(
    prompts: Prompts, text: str, *, system: str | None, is_raw: bool, variables: dict[str, Any]
) -> list[int]:
    """Return the tokens of a prompt: as one user message in the chat template, or as it stands."""
    if is_raw:
        return prompts.encode_raw(text)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    return prompts.encode(prompts.render(messages, **variables))


def _result(model: str, engine: Engine, generation: Generation) -> dict[str, Any]:
    return {
        "model": model,
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "usage": usage_json(generation.stats),
        "token_ids": generation.token_ids,
        "seed": generation.seed,
        "stats": stats_json(engine, generation.state, generation.stats),
    }
