"""`kandiga-pack publish`."""

from __future__ import annotations

from pathlib import Path

import click

from kandiga_pack import show
from kandiga_pack.commands.options import epilog, output_options
from kandiga_pack.output import Output
from kandiga_pack.publish import publish

EPILOG = epilog(
    "kandiga-pack publish qwen3-30b me/Qwen3-30B-A3B-kexp --dry-run",
    "kandiga-pack publish qwen3-30b me/Qwen3-30B-A3B-kexp --private",
)


@click.command("publish", short_help="Upload a container to the Hub.", epilog=EPILOG)
@click.argument("path", metavar="DEST", type=click.Path(path_type=Path))
@click.argument("repository", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--base-model", metavar="USER/NAME", help="Model the checkpoint was made from.")
@click.option("--dry-run", is_flag=True, help="Verify and show the model card; send nothing.")
@output_options
def publish_command(
    output: Output,
    path: Path,
    repository: str,
    private: bool,
    base_model: str | None,
    dry_run: bool,
) -> None:
    """Upload the container DEST to the repository USER/NAME on the Hugging Face Hub.

    DEST is verified first. A model card is written, with the license of the checkpoint's card.
    Everything appears in one commit; after an interruption, run the same command again.
    """
    summary = publish(
        path,
        repository,
        private=private,
        base_model=base_model,
        dry_run=dry_run,
        progress=output.progress(),
    )
    output.result(summary.as_dict(), lambda console: show.show_publish(summary, console))
