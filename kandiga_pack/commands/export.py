"""`kandiga-pack export`."""

from __future__ import annotations

from pathlib import Path

import click

from formats.published import downloads_stay, local_set
from kandiga_pack import show
from kandiga_pack.commands.options import epilog, output_options
from kandiga_pack.export import export
from kandiga_pack.output import Output

EPILOG = epilog("kandiga-pack export qwen3-30b qwen3-30b-mlx")


@click.command("export", short_help="Write the checkpoint back.", epilog=EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@output_options
def export_command(output: Output, path: Path, out: Path) -> None:
    """Write the checkpoint that the container at PATH was made from into a new folder OUT.

    Every tensor comes back bit for bit, in the same files. PATH may be the id of a published
    container, which is downloaded.
    """
    with downloads_stay(path):
        folder = local_set(path, say=output.say())
        summary = export(folder, out, progress=output.progress())
    output.result(summary.as_dict(), lambda console: show.show_export(summary, console))
