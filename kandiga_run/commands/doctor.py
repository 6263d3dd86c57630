"""`kandiga-run doctor`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kandiga_run.commands.options import Invocation, json_option, measure_option, quiet_options
from kandiga_run.terminal.exit_codes import HELP, ExitCode
from kandiga_run.terminal.output import Output

if TYPE_CHECKING:
    from kandiga_run.doctor.finding import Finding, Look

_STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red"}
#: Of the JSON object.
_SCHEMA_VERSION = 1


@click.command(
    "doctor",
    short_help="Tell what this machine is, and what is broken.",
    epilog=f"""\b
Examples:
  kandiga-run doctor
  kandiga-run doctor ./model
  kandiga-run doctor --no-speed --json | jq '.findings[] | select(.state != "ok")'

It ends with 1 when something is broken; a warning is no failure.

{HELP}""",
)
@click.argument("model", required=False, type=click.Path())
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where models are packed to.  [default: ~/.local/share/kandiga/models]",
)
@measure_option
@click.option("--no-speed", is_flag=True, help="Measure nothing.")
@json_option
@quiet_options
@click.pass_obj
def doctor_command(
    invocation: Invocation,
    /,
    model: str | None,
    folder: Path | None,
    measure: bool,
    no_speed: bool,
    is_json: bool,
    quiet: bool,
) -> None:
    """Tell what this machine is, what Kandiga will use of it and why, and what is broken.

    With MODEL also how that one would be run; without, the default model. Nothing is contacted.
    """
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    from kandiga_run.doctor.finding import findings

    found = list(findings(_looks(model, folder, output, measure=measure, speed=not no_speed)))
    is_broken = any(each.state == "broken" for each in found)
    if is_json:
        values = [each.__dict__ for each in found]
        output.json({"kandiga_doctor": _SCHEMA_VERSION, "ok": not is_broken, "findings": values})
    else:
        _print([each for each in found if each.state != "ok" or not quiet], output)
    if is_broken:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _looks(
    model: str | None, folder: Path | None, output: Output, *, measure: bool, speed: bool
) -> dict[str, Look]:
    from kandiga_run.doctor.machine import look_at_memory, look_at_processor
    from kandiga_run.doctor.model import look_at_model
    from kandiga_run.doctor.program import look_at_engines, look_at_program
    from kandiga_run.doctor.storage import folder_looks
    from kandiga_run.forecast.here import models_folder

    folder = (folder or models_folder()).absolute()
    return {
        "program": look_at_program,
        "processor": look_at_processor,
        "memory": look_at_memory,
        **folder_looks(folder, output, measure=measure, speed=speed),
        "engines": look_at_engines,
        "model": partial(look_at_model, model),
    }


def _print(found: list[Finding], output: Output) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for each in found:
        state = Text(each.state, style=_STYLES[each.state])
        table.add_row(state, each.name, Text(each.text))
        if each.advice:
            table.add_row("", "", Text(each.advice, style="italic"))
    console = Console(file=output.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=output.stdout, highlight=False, width=110)
    console.print(table)
