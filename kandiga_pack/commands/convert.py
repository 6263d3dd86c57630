"""`kandiga-pack convert`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from formats.published import downloads_stay
from kandiga_pack import show
from kandiga_pack.commands.options import epilog, output_options
from kandiga_pack.convert import DEFAULT_SHARD_BYTES, convert
from kandiga_pack.errors import UsageError
from kandiga_pack.output import Output
from kandiga_pack.sources.converted import Quantization

EPILOG = epilog(
    "kandiga-pack convert mlx-community/Qwen3-30B-A3B-4bit qwen3-30b",
    "kandiga-pack convert ./Mixtral-8x7B-Instruct-v0.1 mixtral --quantize 4 --group-size 64",
    "kandiga-pack convert qwen3-30b-a3b-q4_0.gguf qwen3-30b --json",
    "kandiga-pack convert ./Qwen3-235B-A22B-4bit qwen3-235b --consume",
)


@click.command("convert", short_help="Pack a checkpoint into a container.", epilog=EPILOG)
@click.argument("source")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option(
    "--quantize",
    "bits",
    type=click.Choice(["2", "3", "4", "5", "6", "8"]),
    help="Quantize an unquantized checkpoint to this many bits, as mlx_lm.convert does.",
)
@click.option(
    "--group-size",
    type=click.Choice(["16", "32", "64", "128"]),
    help="Weights that share a scale.  [default: 64 for affine]",
)
@click.option(
    "--mode",
    type=click.Choice(["affine", "mxfp4", "mxfp8", "nvfp4"]),
    default="affine",
    show_default=True,
    help="Kind of quantization.",
)
@click.option(
    "--shard-size",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_SHARD_BYTES / 2**30,
    show_default=True,
    help="Size of a .kexp file in GiB, about.",
)
@click.option(
    "--consume",
    is_flag=True,
    help="REMOVE each safetensors file of the folder SOURCE once it is packed and on the disk.",
)
@click.option("--restart", is_flag=True, help="Forget what an interrupted conversion has done.")
@output_options
def convert_command(
    output: Output,
    source: str,
    dest: Path,
    revision: str | None,
    bits: str | None,
    group_size: str | None,
    mode: str,
    shard_size: float,
    consume: bool,
    restart: bool,
) -> None:
    """Pack SOURCE into a new folder DEST.

    SOURCE is a folder with safetensors files and config.json, a GGUF file, or the id of a
    repository on the Hugging Face Hub. The weights are carried bit for bit unless --quantize is
    given. Memory stays small whatever the size of the model, and DEST appears only when it is
    complete.

    A conversion that was interrupted goes on when the same command is run again: what is done is in
    DEST.partial, which may be removed to give it up. The files of a Hub repository are downloaded,
    packed and removed one by one.
    """
    with downloads_stay(source):
        summary = convert(
            source,
            dest,
            revision=revision,
            quantization=_quantization(bits, group_size, mode),
            shard_bytes=_shard_bytes(shard_size),
            consume=consume,
            restart=restart,
            progress=output.progress(),
            say=output.note,
        )
    output.result(summary.as_dict(), lambda console: show.show_convert(summary, console))


def _shard_bytes(gibibytes: float) -> int:
    if not math.isfinite(gibibytes):  # click lets both pass
        raise UsageError(f"--shard-size {gibibytes}: a size in GiB is wanted")
    return int(gibibytes * 2**30)


def _quantization(bits: str | None, group_size: str | None, mode: str) -> Quantization | None:
    if bits is None and mode == "affine":
        if group_size is not None:
            raise UsageError("--group-size needs --quantize")
        return None
    return Quantization(int(bits) if bits else None, int(group_size) if group_size else None, mode)
