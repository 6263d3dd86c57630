"""`kandiga-run plan`."""

from __future__ import annotations

from pathlib import Path

import click

from kandiga_run.commands.model_argument import complete_model
from kandiga_run.commands.options import Invocation, json_option, measure_option, quiet_options
from kandiga_run.commands.values import Size
from kandiga_run.kv.choices import KV_CHOICES, KVChoice
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import Output


@click.command(
    "plan",
    short_help="Tell what a model needs and how fast it will be.",
    epilog=f"""\b
Examples:
  kandiga-run plan
  kandiga-run plan qwen3.5-122b-a10b
  kandiga-run plan mlx-community/Qwen3-30B-A3B-4bit --memory 8GB
  kandiga-run plan ./model --context 32768 --kv k4v3 --json

{HELP}""",
)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option(
    "--memory",
    "memory_bytes",
    type=Size(),
    help="What an engine may take, like 8GB.  [default: 80% of what is free]",
)
@click.option(
    "--context",
    "context_tokens",
    metavar="N",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="Tokens of a conversation, for its KV cache.",
)
@click.option(
    "--kv",
    type=click.Choice(KV_CHOICES),
    default="auto",
    show_default=True,
    help="Form of keys and values.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the model would be packed to; its disk is the one that counts.",
)
@measure_option
@click.option("--no-speed", is_flag=True, help="Sizes only; nothing is measured.")
@json_option
@quiet_options
@click.pass_obj
def plan_command(
    invocation: Invocation,
    /,
    model: str | None,
    memory_bytes: int | None,
    context_tokens: int,
    kv: KVChoice,
    folder: Path | None,
    measure: bool,
    no_speed: bool,
    is_json: bool,
    quiet: bool,
) -> None:
    """Tell what MODEL will need and how fast it will be here, before anything is downloaded.

    MODEL is a .kexp folder or a checkpoint, here or as an id on the Hub, of which headers alone are
    fetched; or a preset. Without it, all presets in a line each.

    Speeds are forecasts. They come from this machine's memory and disk ceilings, measured once (in
    the folder where the model is or would be, which writes 0.5 GB for a moment) and remembered.
    """
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    from kandiga_run.forecast.find import find_shape
    from kandiga_run.forecast.forecast import forecast
    from kandiga_run.forecast.here import measured, model_folder, usable_memory_bytes
    from kandiga_run.forecast.presets import PRESETS
    from kandiga_run.forecast.report import (
        SCHEMA_VERSION,
        forecast_json,
        print_forecast,
        print_overview,
    )
    from kandiga_run.memory.use import physical_bytes

    shapes = [find_shape(model)] if model else [each.shape for each in PRESETS.values()]
    for shape in shapes:
        output.detail(f"{shape.name}: {shape.kind}, {shape.architecture}")
    forecasts = []
    for shape in shapes:
        where = folder or model_folder(shape)
        ceilings = None if no_speed else measured(shape, where, output, measure=measure)
        measure = False  # once is enough for all of them
        forecasts.append(
            forecast(
                shape,
                folder=where,
                memory_bytes=memory_bytes or usable_memory_bytes(),
                total_memory_bytes=physical_bytes(),
                context_tokens=context_tokens,
                kv=kv,
                ceilings=ceilings,
            )
        )
    if is_json:
        values = [forecast_json(each) for each in forecasts]
        output.json(values[0] if model else {"kandiga_plan": SCHEMA_VERSION, "models": values})
    elif model:
        print_forecast(forecasts[0], output.stdout)
    else:
        print_overview([(each.shape.name, each) for each in forecasts], output.stdout)
