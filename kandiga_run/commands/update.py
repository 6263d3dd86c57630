"""`kandiga-run update`."""

from __future__ import annotations

import shlex

import click

from kandiga_run.commands.options import Invocation, json_option, quiet_options
from kandiga_run.errors import RunError
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import Output


@click.command(
    "update",
    epilog=f"""\b
Examples:
  kandiga-run update
  kandiga-run update --yes
  $(kandiga-run update --quiet)

{HELP}""",
)
@click.option("--yes", "-y", "runs", is_flag=True, help="Run the command.")
@json_option
@quiet_options
@click.pass_obj
def update_command(invocation: Invocation, /, runs: bool, is_json: bool, quiet: bool) -> None:
    """Tell which command brings Kandiga up to date, from how it was installed; run it with --yes.

    Without --yes nothing is run and nothing is contacted: whether there is a later version is not
    looked up.
    """
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    from kandiga_run.installer import installation
    from kandiga_run.setup.packer import StepFailedError, run_step

    here = installation()
    if here.command is None:
        raise RunError(f"installed with {here.installer}; {here.reason}")
    line = shlex.join(here.command)
    if is_json:
        output.json({"installer": here.installer, "command": list(here.command), "run": runs})
    elif not runs:
        output.notice(f"installed with {here.installer}; this updates it (--yes runs it):")
        output.text(f"{line}\n")
    if not runs:
        return
    output.notice(line)
    try:
        run_step(list(here.command), messages=output.stderr)
    except FileNotFoundError as error:
        raise RunError(f"{here.command[0]}: no such command here, to run {line}") from error
    except StepFailedError as error:
        raise click.exceptions.Exit(error.code) from None
