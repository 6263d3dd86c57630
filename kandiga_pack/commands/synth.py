"""`kandiga-pack synth`."""

from __future__ import annotations

from pathlib import Path

import click

from kandiga_pack import show
from kandiga_pack.commands.options import epilog, output_options
from kandiga_pack.errors import UsageError
from kandiga_pack.output import Output
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.synthetic.presets import PRESETS
from kandiga_pack.synth import synth

HELP = f"""Write a model of a published shape with made-up weights into a new DEST.

Names, shapes and bits are those of the published model, the numbers random: for measuring speed
and memory at full size without a download. What it says makes no sense.

PRESET is one of {", ".join(PRESETS)}. Or give a CONFIG: a config.json, or the folder it is in, of
any mixture of experts that mlx-lm knows.

The same command writes the same bytes on every machine. An interrupted one goes on when it is run
again.
"""
EPILOG = epilog(
    "kandiga-pack synth qwen3.5-35b-a3b synth-35b",
    "kandiga-pack synth qwen3.5-397b-a17b synth-397b --layers 4",
    "kandiga-pack synth ./Qwen3-235B-A22B/config.json synth-235b --bits 3 --layers 8",
)


@click.command(
    "synth",
    short_help="Write a model of some shape with made-up weights.",
    help=HELP,
    epilog=EPILOG,
)
@click.argument("model", metavar="PRESET|CONFIG")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--layers", type=click.IntRange(min=1), help="Only the first so many layers.")
@click.option(
    "--bits",
    type=click.Choice(["2", "3", "4", "5", "6", "8", "16"]),
    default="4",
    show_default=True,
    help="Of a weight; 16 is bf16.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    help="Weights that share a scale.  [default: 64]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Other seeds give other weights.",
)
@click.option("--restart", is_flag=True, help="Forget what an interrupted run has done.")
@output_options
def synth_command(
    output: Output,
    model: str,
    dest: Path,
    layers: int | None,
    bits: str,
    group_size: str | None,
    seed: int,
    restart: bool,
) -> None:
    if bits == "16" and group_size is not None:
        raise UsageError("--group-size is for quantized weights, and --bits 16 are not")
    quantization = None if bits == "16" else Quantization(int(bits), int(group_size or 64))
    summary = synth(
        model,
        dest,
        num_layers=layers,
        quantization=quantization,
        seed=seed,
        restart=restart,
        progress=output.progress(),
        say=output.note,
    )
    output.result(summary.as_dict(), lambda console: show.show_synth(summary, console))
