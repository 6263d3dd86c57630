"""The command line `kandiga-run`.

Imports here are few on purpose: `kandiga-run --help` and a mistyped option answer at once, and
numpy, tokenizers, jinja2, rich and the engines are loaded by the command that needs them.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kandiga_run.bench.command import bench
from kandiga_run.cli_options import (
    Invocation,
    engine_arguments,
    engine_options,
    output_options,
    sampling_options,
)
from kandiga_run.exit_codes import HELP, ExitCode
from kandiga_run.failures import describe
from kandiga_run.output import PROGRAM, Output
from kandiga_run.standard_input import decode_input

if TYPE_CHECKING:
    from kandiga_run.engine import Engine
    from kandiga_run.generation import GenerateOptions
    from kandiga_run.prompts import Prompts

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_SETTINGS, epilog=HELP, no_args_is_help=True)
@click.version_option(package_name="kandiga-kexp", prog_name=PROGRAM)
def cli() -> None:
    """Run mixture-of-experts language models from .kexp containers, experts read from disk."""


@cli.command(
    epilog=f"""\b
Examples:
  kandiga-run run ./model "What is the capital of France?"
  kandiga-run run someone/Qwen3-30B-A3B-kexp "What is the capital of France?"
  kandiga-run run ./model - < question.txt
  kandiga-run run ./model "Say hello" --memory 2GB --stats
  kandiga-run run ./model --raw "Once upon a time" --temperature 0.8 --seed 1

{HELP}"""
)
@click.argument("model", type=click.Path(path_type=Path))
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
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object instead of text.")
@output_options
@click.pass_obj
def run(
    invocation: Invocation,
    /,
    model: Path,
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

    PROMPT - reads standard input, and so does no PROMPT when something is piped in.
    """
    if raw and system:
        raise click.UsageError("--raw continues plain text: it has no place for --system")
    text = _prompt_text(prompt)
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    folder, prompts = _tokenizer(model, choices, output)
    from kandiga_run.one_shot import prompt_tokens, run_once

    tokens = prompt_tokens(
        prompts, text, system=system, is_raw=raw, variables=_template_variables(choices)
    )
    options = _generate_options(prompts, choices)
    state_tokens = len(tokens) + options.answer_limit(len(tokens))
    with _engine(folder, choices, output, state_tokens) as engine:
        run_once(
            engine,
            prompts,
            tokens,
            options,
            output,
            model=str(model),
            shows_stats=shows_stats,
            prompt_cache=prompt_cache,
        )


@cli.command(
    epilog=f"""\b
Examples:
  kandiga-run chat ./model
  kandiga-run chat someone/Qwen3-30B-A3B-kexp@v1.0
  kandiga-run chat ./model --system "Answer in one sentence." --memory 4GB
  printf 'Hello\\nAnd in French?\\n' | kandiga-run chat ./model

{HELP}"""
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", help="System message of the conversation.")
@sampling_options
@engine_options
@output_options
@click.pass_obj
def chat(
    invocation: Invocation,
    /,
    model: Path,
    system: str | None,
    shows_stats: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Converse with MODEL, a folder of .kexp files or the id of a published one.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands. Piped input is answered line by
    line.
    """
    output = invocation.output = Output(is_quiet=quiet)
    folder, prompts = _tokenizer(model, choices, output)
    context_tokens = _chat_context(prompts, choices["context"])
    with _engine(folder, choices, output, context_tokens) as engine:
        from kandiga_run.chat import Conversation
        from kandiga_run.chat_terminal import ChatTerminal, line_reader

        conversation = Conversation(
            engine,
            prompts,
            _generate_options(prompts, choices),
            context_tokens=context_tokens,
            system=system,
            variables=_template_variables(choices),
        )
        read_line, is_interactive = line_reader(output)
        if is_interactive:
            output.notice(f"{model}: /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
        ChatTerminal(
            conversation,
            output,
            read_line,
            is_interactive=is_interactive,
            shows_stats=shows_stats,
        ).run()


cli.add_command(bench)


def _tokenizer(model: Path, choices: dict[str, Any], output: Output) -> tuple[Path, Prompts]:
    """Find the model's folder and read its tokenizer.

    Before the engine: the budget counts what the tokenizer takes, and room for the prompt.
    """
    engine_arguments(choices)  # a mistake in them is told before anything is read
    from formats import open_set
    from formats.published import local_set
    from kandiga_run.prompts import Prompts

    folder = local_set(model, say=output.notice if output.stderr.isatty() else None)
    # What is no container at all is told as such, not as one without a tokenizer.
    open_set(folder).close()
    prompts = Prompts(folder)
    made_for = prompts.context_length
    if made_for and (choices["context"] or 0) > made_for:
        output.notice(f"--context {choices['context']}: the model was made for {made_for}")
    return folder, prompts


@contextmanager
def _engine(
    folder: Path, choices: dict[str, Any], output: Output, state_tokens: int
) -> Iterator[Engine]:
    """Open the engine, with room for a state of so many tokens; say what is lossy; close it."""
    from kandiga_run.engine import load_engine
    from kandiga_run.report import departure_notice

    engine = load_engine(folder, **engine_arguments(choices), state_tokens=state_tokens)
    with closing(engine):
        if notice := departure_notice(engine.stats):
            output.notice(notice)
        yield engine


def _generate_options(prompts: Prompts, choices: dict[str, Any]) -> GenerateOptions:
    from kandiga_run.generation import GenerateOptions
    from kandiga_run.model_defaults import sampling_for

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


def _template_variables(choices: dict[str, Any]) -> dict[str, Any]:
    return {} if choices["think"] is None else {"enable_thinking": choices["think"]}


def _chat_context(prompts: Prompts, chosen: int | None) -> int:
    """Return the tokens a conversation may hold; without a choice a modest KV cache."""
    return chosen or min(8192, prompts.context_length or 8192)


def _prompt_text(prompt: str | None) -> str:
    """Return the prompt from the command line or standard input."""
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError('no prompt: give one, like "Say hello", or pipe text in')
    if prompt is None or prompt == "-":
        prompt = decode_input(sys.stdin.buffer.read())
    elif any("\ud800" <= character <= "\udfff" for character in prompt):
        raise click.UsageError("the prompt is not UTF-8 text")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without the characters of an answer shows "?" and goes on.
            stream.reconfigure(errors="replace")
    invocation = Invocation()
    try:
        # Not click's own main: it would take Ctrl-C and a closed pipe for itself.
        with cli.make_context(
            PROGRAM, list(sys.argv[1:] if arguments is None else arguments), obj=invocation
        ) as context:
            cli.invoke(context)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        _print_usage_error(error, invocation.output)
        return ExitCode.USAGE
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does: no failure.
        _silence_stdout()
        return ExitCode.OK
    except BaseException as error:
        return _report(error, invocation)
    return ExitCode.OK


def _report(error: BaseException, invocation: Invocation) -> int:
    """Print one line for a failure, after its traceback with --debug; return the exit code."""
    invocation.output.end_text()
    if invocation.is_debug:
        traceback.print_exception(error, file=sys.stderr)
    line, code = describe(error) or (_describe_bug(error), ExitCode.FAILED)
    invocation.output.error(line)
    return code


def _describe_bug(error: BaseException) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what} (--debug shows where; please report it)"


def _print_usage_error(error: click.ClickException, output: Output) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), file=output.stderr)
        return
    context = getattr(error, "ctx", None)
    command = context.command_path if context else PROGRAM
    output.error(f"{error.format_message()} (see {command} --help)")


def _silence_stdout() -> None:
    """Keep the interpreter from complaining when it flushes a closed stdout on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
