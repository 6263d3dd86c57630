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
    short_help="Tell how to update Kandiga.",
    epilog=f"""\b
Examples:
  kandiga-run update
  kandiga-run update --yes
  kandiga-run update --json

{HELP}""",
)
@click.option("--yes", "-y", "runs", is_flag=True, help="Run it.")
@json_option
@quiet_options
@click.pass_obj
def update_command(invocation: Invocation, /, runs: bool, is_json: bool, quiet: bool) -> None:
    """Tell what brings Kandiga up to date, from how it was installed; run it with --yes.

    Without --yes nothing is run and nothing is contacted: whether there is a later version is not
    looked up.
    """
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    from kandiga_run.installer import installation
    from kandiga_run.setup.packer import StepFailedError, run_step

    here = installation()
    if not here.commands:
        raise RunError(f"installed with {here.installer}; {here.reason}")
    line = " && ".join(shlex.join(command) for command in here.commands)
    if is_json:
        commands = [list(command) for command in here.commands]
        output.json({"installer": here.installer, "commands": commands, "run": runs})
    elif not runs:
        output.notice(f"installed with {here.installer}; this updates it (--yes runs it):")
        output.text(f"{line}\n")
    if not runs:
        return
    for command in here.commands:
        output.notice(shlex.join(command))
        try:
            run_step(list(command), messages=output.stderr)
        except FileNotFoundError as error:
            raise RunError(f"{command[0]}: no such command here, to run {line}") from error
        except StepFailedError as error:
            raise click.exceptions.Exit(error.code) from None
