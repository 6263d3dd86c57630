"""`kandiga-run completion`."""

from __future__ import annotations

from typing import Any

import click

from kandiga_run.commands.options import Invocation
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import PROGRAM, Output

#: Program -> variable that asks it for completions; both programs answer to theirs.
COMPLETE_VARIABLES = {PROGRAM: "_KANDIGA_RUN_COMPLETE", "kandiga-pack": "_KANDIGA_PACK_COMPLETE"}


@click.command(
    "completion",
    short_help="Print what completes commands in a shell.",
    epilog=f"""\b
Examples:
  eval "$(kandiga-run completion bash)"                              # in ~/.bashrc
  eval "$(kandiga-run completion zsh)"                               # in ~/.zshrc, after compinit
  kandiga-run completion fish > ~/.config/fish/conf.d/kandiga.fish

{HELP}""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def completion_command(invocation: Invocation, /, shell: str) -> None:
    """Print the script that has SHELL complete kandiga-run and kandiga-pack."""
    output = invocation.output = Output()
    from click.shell_completion import get_completion_class

    made: Any = get_completion_class(shell)
    for program, variable in COMPLETE_VARIABLES.items():
        # click's own check of bash's version would need bash: the script says so itself if old.
        writer = made(click.Command(program), {}, program, variable)
        output.text(writer.source_template % writer.source_vars() + "\n")
