"""`kandiga-pack repair`."""

from __future__ import annotations

from pathlib import Path

import click

from kandiga_pack import show
from kandiga_pack.commands.options import epilog, output_options
from kandiga_pack.output import Output
from kandiga_pack.repair import repair

EPILOG = epilog(
    "kandiga-pack repair qwen3-30b --from mlx-community/Qwen3-30B-A3B-4bit",
    "kandiga-pack repair qwen3-30b --from /mnt/backup/qwen3-30b",
    "kandiga-pack repair qwen3-30b --from someone/Qwen3-30B-A3B-kexp --dry-run",
)


@click.command("repair", short_help="Rewrite just what is damaged.", epilog=EPILOG)
@click.argument("path", metavar="DEST", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="Another copy of the container, or the checkpoint: folder, GGUF file or Hub id.  "
    "[default: the repository that DEST records]",
)
@click.option("--revision", help="Branch, tag or commit, when SOURCE is a Hub id.")
@click.option("--dry-run", is_flag=True, help="Find the damage; write nothing.")
@output_options
def repair_command(
    output: Output, path: Path, source: str | None, revision: str | None, dry_run: bool
) -> None:
    """Find what is damaged in the container DEST and write just that again, in place.

    From a Hub id only the ranges of bytes that are needed are fetched. Nothing is written whose
    SHA-256 is not the recorded one, so a wrong SOURCE does no harm. DEST is verified at the end.
    """
    summary = repair(path, source, revision=revision, dry_run=dry_run, progress=output.progress())
    output.result(summary.as_dict(), lambda console: show.show_repair(summary, console))
