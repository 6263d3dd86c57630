"""`kandiga-pack verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from formats.published import downloads_stay, local_set
from kandiga_pack import show
from kandiga_pack.commands.options import epilog, output_options
from kandiga_pack.errors import UsageError, describe
from kandiga_pack.output import Output
from kandiga_pack.verify import verify

EPILOG = epilog(
    "kandiga-pack verify qwen3-30b",
    "kandiga-pack verify qwen3-30b --level index",
    "kandiga-pack verify qwen3-30b --against mlx-community/Qwen3-30B-A3B-4bit",
)


@click.command("verify", short_help="Check a container's bytes.", epilog=EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--level",
    type=click.Choice(["index", "full"]),
    default="full",
    show_default=True,
    help="index: everything but the weights. full: every byte.",
)
@click.option("--against", metavar="SOURCE", help="Also compare every tensor with this source.")
@click.option("--revision", help="Branch, tag or commit, when SOURCE is a Hub id.")
@output_options
def verify_command(
    output: Output, path: Path, level: Any, against: str | None, revision: str | None
) -> None:
    """Check the container at PATH, and say what is wrong with it.

    PATH may be the id of a published one, which is downloaded.
    """
    if revision is not None and against is None:
        raise UsageError("--revision needs --against")
    with downloads_stay(path), downloads_stay(against or ""):
        report = verify(
            local_set(path, say=output.say()),
            level=level,
            against=against,
            revision=revision,
            progress=output.progress(),
        )
    for finding in report.findings:
        output.finding(str(finding))
    if report.ok or output.json:
        output.result(report.as_dict(), lambda console: show.show_verify(report, console))
    if not report.ok:
        _, code = describe(report.findings[0])
        raise click.exceptions.Exit(code)
