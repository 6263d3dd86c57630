"""`kandiga-run setup`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kandiga_run.commands.model_argument import complete_model
from kandiga_run.commands.options import Invocation, quiet_options
from kandiga_run.commands.values import Size
from kandiga_run.errors import RunError
from kandiga_run.terminal.exit_codes import HELP, ExitCode
from kandiga_run.terminal.output import Output

if TYPE_CHECKING:
    from kandiga_run.forecast.forecast import Forecast
    from kandiga_run.forecast.shape import ModelShape
    from kandiga_run.setup.target import Target

_CONTEXT_TOKENS = 8192


@click.command(
    "setup",
    short_help="Choose a model, bring it here, remember it.",
    epilog=f"""\b
Examples:
  kandiga-run setup
  kandiga-run setup --model qwen3.5-35b-a3b --yes
  kandiga-run setup --model mlx-community/Qwen3-30B-A3B-4bit --folder /mnt/models
  kandiga-run setup --model ./my-packed-model
  kandiga-run setup --model demo

{HELP}""",
)
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=complete_model,
    help="A preset (qwen3.5-35b-a3b, qwen3.5-122b-a10b, qwen3.5-397b-a17b, demo), an id on the Hub "
    "or a folder.  [default: the largest preset that fits]",
)
@click.option("--yes", "-y", "says_yes", is_flag=True, help="Do not ask.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where models are packed to.  [default: ~/.local/share/kandiga/models]",
)
@click.option(
    "--memory",
    "memory_bytes",
    type=Size(),
    help="What an engine may take, when choosing.  [default: 80% of what is free]",
)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object at the end.")
@quiet_options
@click.pass_obj
def setup_command(
    invocation: Invocation,
    /,
    model: str | None,
    says_yes: bool,
    folder: Path | None,
    memory_bytes: int | None,
    is_json: bool,
    quiet: bool,
) -> None:
    """Choose a model, bring it here, and remember it as the one that `kandiga-run chat` takes.

    A published .kexp container is downloaded and checked. A checkpoint is downloaded, packed and
    removed file by file, so the disk never holds it twice, and every byte of the result is checked.
    The same command goes on where an interrupted one was.
    """
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    from kandiga_run.forecast.here import models_folder
    from kandiga_run.setup.install import forget_demo, install, is_installed, prepare_demo
    from kandiga_run.setup.packer import StepFailedError
    from kandiga_run.setup.target import DEMO, find_target

    folder = (folder or models_folder()).absolute()
    target: Target | None = None
    try:
        if model is None:
            model = _largest_that_fits(folder, memory_bytes, output)
        elif model.lower() == DEMO:
            model = str(prepare_demo(folder, output))
        target = find_target(model, folder)
        if not is_installed(target):
            _agree(target, folder, memory_bytes, output, says_yes=says_yes)
        install(target, output)
        forget_demo(folder, target)
    except StepFailedError as error:
        if error.code == ExitCode.INTERRUPTED:
            output.notice("the same command goes on from here")
        raise click.exceptions.Exit(error.code) from None
    except KeyboardInterrupt:
        if target is not None:
            output.notice("the same command goes on from here")
        raise
    _finish(target, output)


def _largest_that_fits(folder: Path, memory_bytes: int | None, output: Output) -> str:
    """Show the presets and return the name of the one for this machine. RunError."""
    from kandiga_run.forecast.presets import PRESETS
    from kandiga_run.forecast.report import print_overview
    from kandiga_run.setup.choose import best
    from kandiga_run.setup.target import planned_folder

    forecasts = [
        _forecast(
            each.shape,
            folder,
            memory_bytes,
            output,
            partial=planned_folder(each.published or each.checkpoint, folder),
        )
        for each in PRESETS.values()
    ]
    if not output.is_quiet:
        print_overview([(each.shape.name, each) for each in forecasts], output.stderr)
    return best(forecasts).shape.name


def _forecast(
    shape: ModelShape,
    folder: Path,
    memory_bytes: int | None,
    output: Output,
    *,
    partial: Path | None,
) -> Forecast:
    from kandiga_run.forecast.forecast import forecast
    from kandiga_run.forecast.here import folder_bytes, measured, usable_memory_bytes
    from kandiga_run.memory.use import physical_bytes

    return forecast(
        shape,
        folder=folder,
        memory_bytes=memory_bytes or usable_memory_bytes(),
        total_memory_bytes=physical_bytes(),
        context_tokens=_CONTEXT_TOKENS,
        kv="auto",
        ceilings=measured(shape, folder, output),
        # What an interrupted run has there already is not needed again.
        done_bytes=folder_bytes(partial) if partial else 0,
    )


def _agree(
    target: Target, folder: Path, memory_bytes: int | None, output: Output, *, says_yes: bool
) -> None:
    """Say what will be done and ask; RunError when it cannot work, Exit when it is not wanted."""
    from kandiga_run.forecast.here import model_folder
    from kandiga_run.sizes import format_size

    place = model_folder(target.shape) if target.how == "fetch" else folder
    forecast = _forecast(target.shape, place, memory_bytes, output, partial=target.partial)
    name = target.shape.name
    if forecast.verdict == "no":
        raise RunError(f"{name}: {'; '.join(forecast.reasons)} (`kandiga-run plan {name}`)")
    for reason in forecast.reasons:
        output.notice(f"{name}: {reason}")
    where = "the Hub's cache" if target.dest is None else str(target.dest)
    verb = "Download" if target.how == "fetch" else "Download and pack"
    if target.shape.download is None:
        verb = "Pack"
    size = forecast.disk.download or forecast.disk.packed
    question = f"{verb} {target.source} ({format_size(size)}) into {where}?"
    if says_yes:
        output.notice(question.rstrip("?"))
    elif sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody is there to answer: give --yes")
    elif not _confirmed(question):
        output.notice("nothing was done")
        raise click.exceptions.Exit(ExitCode.OK)


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, default=True, err=True)
    except click.Abort:  # what click makes of Ctrl-C, and of Ctrl-D
        raise KeyboardInterrupt from None


def _finish(target: Target, output: Output) -> None:
    if output.is_json:
        output.json(
            {
                "model": target.shape.name,
                "source": target.source,
                "default_model": target.default_model,
                "how": target.how,
            }
        )
    output.notice(f"{target.shape.name} is ready. Next:\n\n  kandiga-run chat\n")
