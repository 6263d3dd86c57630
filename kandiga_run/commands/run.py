"""`kandiga-run run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kandiga_run.commands.engine_options import engine_options
from kandiga_run.commands.model_argument import reads_like_a_prompt, remembered_model
from kandiga_run.commands.opening import (
    generate_options,
    open_engine,
    open_tokenizer,
    template_variables,
)
from kandiga_run.commands.options import Invocation, json_option, output_options, sampling_options
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import Output
from kandiga_run.terminal.standard_input import decode_input


@click.command(
    "run",
    short_help="Answer one prompt.",
    epilog=f"""\b
Examples:
  kandiga-run "What is the capital of France?"
  kandiga-run run ./model "What is the capital of France?"
  kandiga-run run someone/Qwen3-30B-A3B-kexp "What is the capital of France?"
  kandiga-run run ./model - < question.txt
  kandiga-run run ./model "Say hello" --memory 2GB --stats
  kandiga-run run ./model --raw "Once upon a time" --temperature 0.8 --seed 1

{HELP}""",
)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="System message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without a chat template.")
@click.option(
    "--prompt-cache",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Begin with the state in FILE as far as its prompt is this one's; keep the state there.",
)
@sampling_options
@engine_options
@json_option
@output_options
@click.pass_obj
def run_command(
    invocation: Invocation,
    /,
    model: Path | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    prompt_cache: Path | None,
    is_json: bool,
    shows_stats: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Answer PROMPT with MODEL, a folder of .kexp files or the id of a published one.

    Without MODEL the one that `kandiga-run setup` remembers answers, and "run" may be left out: a
    sentence in quotes is enough.

    PROMPT - reads standard input, and so does no PROMPT when something is piped in.
    """
    if raw and system:
        raise click.UsageError("--raw continues plain text: it has no place for --system")
    model, prompt = _model_and_prompt(model, prompt)
    text = _prompt_text(prompt, is_raw=raw)
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    folder, prompts = open_tokenizer(model, choices, output)
    from kandiga_run.chat.one_shot import prompt_tokens, run_once

    tokens = prompt_tokens(
        prompts, text, system=system, is_raw=raw, variables=template_variables(choices)
    )
    options = generate_options(prompts, choices)
    state_tokens = len(tokens) + options.answer_limit(len(tokens))
    with open_engine(folder, choices, output, state_tokens) as engine:
        run_once(
            engine,
            prompts,
            tokens,
            options,
            output,
            model=str(model),
            shows_stats=shows_stats,
            prompt_cache=prompt_cache,
            is_raw=raw,
        )


def _model_and_prompt(model: Path | None, prompt: str | None) -> tuple[Path, str | None]:
    """Return MODEL and PROMPT when the only argument given may be either."""
    if model is not None and prompt is None and reads_like_a_prompt(str(model)):
        model, prompt = None, str(model)
    return model or remembered_model(), prompt


def _prompt_text(prompt: str | None, *, is_raw: bool) -> str:
    """Return the prompt from the command line or standard input."""
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError('no prompt: give one, like "Say hello", or pipe text in')
    if prompt is None or prompt == "-":
        # What `echo` adds is no part of a question, and changes the answer of small models.
        prompt = decode_input(sys.stdin.buffer.read())
        prompt = prompt if is_raw else prompt.removesuffix("\n").removesuffix("\r")
    elif any("\ud800" <= character <= "\udfff" for character in prompt):
        raise click.UsageError("the prompt is not UTF-8 text")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt
