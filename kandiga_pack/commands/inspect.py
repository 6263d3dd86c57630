"""`kandiga-pack inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from kandiga_pack import show
from kandiga_pack.commands.options import epilog, output_options
from kandiga_pack.inspect import inspect
from kandiga_pack.output import Output

EPILOG = epilog(
    "kandiga-pack inspect qwen3-30b",
    "kandiga-pack inspect someone/Qwen3-30B-A3B-kexp --json",
)


@click.command("inspect", short_help="Show what is in a container.", epilog=EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@output_options
def inspect_command(output: Output, path: Path) -> None:
    """Show what is in the container at PATH.

    PATH may be the id of a published one, user/name or user/name@revision: its index is then read
    by range requests, and no weights are fetched.
    """
    facts = inspect(path)
    output.result(facts, lambda console: show.show_inspect(facts, console))
