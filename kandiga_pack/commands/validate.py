"""`kandiga-pack validate`: the standalone validator under this program's name."""

from __future__ import annotations

from typing import NoReturn

import click

from kandiga_pack.commands.options import epilog

EPILOG = epilog(
    "kandiga-pack validate qwen3-30b",
    "kandiga-pack validate qwen3-30b --level semantics --json",
    "kandiga-pack validate qwen3-30b --against ./Qwen3-30B-A3B-4bit",
)


@click.command("validate", short_help="Hold a set to the written format.", epilog=EPILOG)
@click.argument("path")
@click.option(
    "--level",
    type=click.Choice(["framing", "structure", "semantics", "integrity"]),
    default="integrity",
    show_default=True,
    help="How far to go; integrity reads every byte.",
)
@click.option("--against", metavar="FOLDER", help="Also compare with these safetensors files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Print findings only.")
def validate_command(
    path: str, level: str, against: str | None, as_json: bool, quiet: bool
) -> NoReturn:
    """Hold the set, or the one .kexp file, at PATH to the written format, and list all findings.

    This is specs/validate_kexp.py: a program that shares no code with the reader behind `verify`,
    so the two together also find what one of them misunderstands.
    """
    from specs.validate_kexp import main as validate

    arguments = ["--level", level]
    arguments += ["--against", against] if against is not None else []
    arguments += ["--json"] if as_json else []
    arguments += ["--quiet"] if quiet else []
    raise click.exceptions.Exit(validate([*arguments, "--", path]))
