"""`kandiga-run chat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kandiga_run.cli_options import Invocation, engine_options, output_options, sampling_options
from kandiga_run.commands.model_argument import model_argument
from kandiga_run.commands.opening import (
    generate_options,
    open_engine,
    open_tokenizer,
    template_variables,
)
from kandiga_run.exit_codes import HELP
from kandiga_run.output import Output

if TYPE_CHECKING:
    from kandiga_run.prompts import Prompts


@click.command(
    "chat",
    epilog=f"""\b
Examples:
  kandiga-run chat
  kandiga-run chat ./model
  kandiga-run chat someone/Qwen3-30B-A3B-kexp@v1.0
  kandiga-run chat ./model --system "Answer in one sentence." --memory 4GB
  printf 'Hello\\nAnd in French?\\n' | kandiga-run chat ./model

{HELP}""",
)
@model_argument
@click.option("--system", metavar="TEXT", help="System message of the conversation.")
@sampling_options
@engine_options
@output_options
@click.pass_obj
def chat_command(
    invocation: Invocation,
    /,
    model: Path,
    system: str | None,
    shows_stats: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Converse with MODEL, a folder of .kexp files or the id of a published one; without
    it with the model that `kandiga-run setup` remembers.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands. Piped input is answered line by
    line.
    """
    output = invocation.output = Output(is_quiet=quiet)
    folder, prompts = open_tokenizer(model, choices, output)
    context_tokens = _chat_context(prompts, choices["context"])
    with open_engine(folder, choices, output, context_tokens) as engine:
        from kandiga_run.chat import Conversation
        from kandiga_run.chat_terminal import ChatTerminal, line_reader

        conversation = Conversation(
            engine,
            prompts,
            generate_options(prompts, choices),
            context_tokens=context_tokens,
            system=system,
            variables=template_variables(choices),
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


def _chat_context(prompts: Prompts, chosen: int | None) -> int:
    """Return the tokens a conversation may hold; without a choice a modest KV cache."""
    return chosen or min(8192, prompts.context_length or 8192)
