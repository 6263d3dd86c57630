"""What the commands that answer prompts do first: find the model, open tokenizer and engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandiga_run.commands.engine_options import engine_arguments, tuned_arguments
from kandiga_run.terminal.output import Output

if TYPE_CHECKING:
    from kandiga_run.engine import Engine
    from kandiga_run.generation.loop import GenerateOptions
    from kandiga_run.tokenizer.prompts import Prompts


def open_tokenizer(model: Path, choices: dict[str, Any], output: Output) -> tuple[Path, Prompts]:
    """Find the model's folder and read its tokenizer.

    Before the engine: the budget counts what the tokenizer takes, and room for the prompt.
    """
    engine_arguments(choices)  # a mistake in them is told before anything is read
    from formats import open_set
    from formats.published import local_set
    from kandiga_run.tokenizer.prompts import Prompts

    folder = local_set(model, say=output.notice if output.stderr.isatty() else None)
    # What is no container at all is told as such, not as one without a tokenizer.
    open_set(folder).close()
    output.detail(f"model in {folder}")
    prompts = Prompts(folder)
    made_for = prompts.context_length
    if made_for and (choices["context"] or 0) > made_for:
        output.notice(f"--context {choices['context']}: the model was made for {made_for}")
    return folder, prompts


@contextmanager
def open_engine(
    folder: Path, choices: dict[str, Any], output: Output, state_tokens: int
) -> Iterator[Engine]:
    """Open the engine, with room for a state of so many tokens; say what is lossy; close it.

    Tuned settings fill in what was not chosen; the engine's stats name them.
    """
    from kandiga_run.answers.report import departure_notice
    from kandiga_run.engine import load_engine

    arguments, tuned = tuned_arguments(folder, choices)
    started = time.perf_counter()
    engine = load_engine(folder, **arguments, state_tokens=state_tokens)
    engine.stats.tuned = tuned
    _tell_choices(engine, time.perf_counter() - started, state_tokens, output)
    with closing(engine):
        if notice := departure_notice(engine.stats):
            output.notice(notice)
        yield engine


def _tell_choices(engine: Engine, seconds: float, state_tokens: int, output: Output) -> None:
    stats = engine.stats
    output.detail(
        f"{engine.name} engine, {stats.arithmetic or 'its own'} arithmetic, experts "
        f"{stats.residency or 'not opened yet'}, opened in {seconds:.2f} s"
    )
    output.detail(f"room for {state_tokens} tokens of prompt and answer")
    if stats.tuned:
        output.detail(stats.tuned)


def generate_options(prompts: Prompts, choices: dict[str, Any]) -> GenerateOptions:
    """Return what `sampling_options` chose, over what the model's makers recommend."""
    from kandiga_run.generation.loop import GenerateOptions
    from kandiga_run.generation.model_defaults import sampling_for

    names = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "repetition_window",
        "seed",
    )
    return GenerateOptions(
        max_tokens=choices["max_tokens"],
        stop=choices["stop"],
        stop_token_ids=prompts.stop_token_ids,
        sampling=sampling_for(prompts.generation_config, {name: choices[name] for name in names}),
        context_length=choices["context"] or prompts.context_length,
    )


def template_variables(choices: dict[str, Any]) -> dict[str, Any]:
    """Return what the chat template is told besides the messages."""
    return {} if choices["think"] is None else {"enable_thinking": choices["think"]}
