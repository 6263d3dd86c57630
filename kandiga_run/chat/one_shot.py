"""`kandiga-run run`: one prompt, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kandiga_run.answers.parts import AnswerFormat
from kandiga_run.answers.reply import Reply
from kandiga_run.answers.report import stats_json, stats_rows, usage_json
from kandiga_run.chat.plain_view import PlainView
from kandiga_run.chat.views import ViewSettings
from kandiga_run.engine import Engine, SavingEngine, State
from kandiga_run.errors import RunError
from kandiga_run.generation.kept_state import common_length
from kandiga_run.generation.loop import GenerateOptions, Generation, generate
from kandiga_run.kv.prompt_cache import saved_tokens
from kandiga_run.terminal.output import Output
from kandiga_run.tokenizer.prompts import Prompts

#: Enough to hold the mark that a template may end with.
_ENDING_TOKENS = 16


def run_once(
    engine: Engine,
    prompts: Prompts,
    prompt_tokens: list[int],
    options: GenerateOptions,
    output: Output,
    *,
    model: str,
    shows_stats: bool = False,
    prompt_cache: Path | None = None,
    is_raw: bool = False,
) -> Generation:
    """Stream the answer to `output`, then its figures; return the finished generation.

    Reasoning goes to stderr, and only where that is a terminal.

    is_raw: all text is the answer's, whatever it looks like.
    prompt_cache: a file whose state is used as far as its tokens are the prompt's, and which
    afterwards holds the state of prompt and answer.
    """
    format_ = AnswerFormat.plain() if is_raw else AnswerFormat.of(prompts, with_tools=False)
    state, num_reused = _reused_state(engine, prompt_cache, prompt_tokens, options, output)

    def on_progress(done: int, total: int) -> None:
        output.progress("reading the prompt", done, total)

    # The end of the prompt tells whether the template itself began the reasoning.
    ending = prompts.decode(prompt_tokens[-_ENDING_TOKENS:], skip_special_tokens=False)
    splitter = format_.splitter(ending)
    mask = None
    if options.stop:
        mask = format_.after_reasoning(None, is_open=splitter.opens_in_reasoning)
    generation = generate(
        engine,
        prompt_tokens[num_reused:],
        options,
        state=state,
        history=prompt_tokens[:num_reused],
        detokenizer=prompts.detokenizer(keep=format_.kept_tokens),
        on_progress=on_progress,
        mask=mask,
    )
    reply = Reply(generation, splitter)
    view = PlainView(output, ViewSettings("show" if output.stderr.isatty() else "hide"))
    view.begin()
    with generation:
        for chunk in reply:
            view.add(chunk)
    view.end(reply)
    if prompt_cache is not None and isinstance(engine, SavingEngine):
        seen = [*prompt_tokens, *generation.token_ids][: generation.state.position]
        engine.save_state(generation.state, seen, prompt_cache)
    if generation.finish_reason == "length":
        output.notice(f"the answer ends at its limit of {len(generation.token_ids)} tokens")
    if output.is_json:
        output.json(_result(model, engine, reply))
    if shows_stats:
        output.table("figures", stats_rows(engine, generation.state, generation.stats))
    return generation


def _reused_state(
    engine: Engine,
    prompt_cache: Path | None,
    prompt_tokens: list[int],
    options: GenerateOptions,
    output: Output,
) -> tuple[State | None, int]:
    """Return the state of a prompt cache file, and how many tokens of the prompt it has seen."""
    if prompt_cache is None:
        return None, 0
    if not isinstance(engine, SavingEngine):
        raise RunError(f"--prompt-cache: the {engine.name} engine saves no states")
    if not prompt_cache.exists():
        return None, 0
    num_tokens = len(prompt_tokens) + options.answer_limit(len(prompt_tokens))
    room = max(num_tokens, saved_tokens(prompt_cache))
    state, seen = engine.load_state(prompt_cache, room)
    # One token of the prompt must be left to compute: its logits begin the answer.
    common = common_length(prompt_tokens[:-1], seen)
    if common < len(seen) and not state.can_trim:
        output.notice(f"{prompt_cache}: another prompt, and recurrent state cannot go back")
        return None, 0
    state.trim(len(seen) - common)
    output.notice(f"{common} of {len(prompt_tokens)} prompt tokens from {prompt_cache}")
    return state, common


def prompt_tokens(
    prompts: Prompts, text: str, *, system: str | None, is_raw: bool, variables: dict[str, Any]
) -> list[int]:
    """Return the tokens of a prompt: as one user message in the chat template, or as it stands."""
    if is_raw:
        return prompts.encode_raw(text)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    return prompts.encode(prompts.render(messages, **variables))


def _result(model: str, engine: Engine, reply: Reply) -> dict[str, Any]:
    generation = reply.generation
    return {
        "model": model,
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": generation.finish_reason,
        "usage": usage_json(generation.stats),
        "token_ids": generation.token_ids,
        "seed": generation.seed,
        "stats": stats_json(engine, generation.state, generation.stats),
    }
