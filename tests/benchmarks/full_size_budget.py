"""What a published shape takes at its full number of layers, without a disk for its experts.

    PYTHONPATH=tests python tests/benchmarks/full_size_budget.py qwen3.5-397b-a17b MODEL
    kandiga-run bench MODEL --memory-cap 8GB --cache cold --prefill 512 --depth 4K --no-ceilings

Experts are holes in the container's files. Dense weights, sizes, offsets and checksums are real;
blocks of experts are read as fast as the file system makes zeros. For memory, not for speed. The
program writes the container and prints how a budget is divided.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import click

from holes import experts_are_holes
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.synth import synth
from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError

FOUR_BITS = Quantization(4, 64)


def write_with_holes(preset: str, dest: Path, num_layers: int | None = None) -> None:
    """Write the container of a preset or config.json; it takes as much disk as dense weights do.

    num_layers: of them, None for all.
    """
    with (
        experts_are_holes(),
        patch("kandiga_pack.convert.check_free_space", lambda *_: None),
    ):
        synth(preset, dest, num_layers=num_layers, quantization=FOUR_BITS)


def division_of_a_budget(model: Path, num_tokens: int) -> str:
    """Return what the engine says it needs when it is given far too little."""
    try:
        load_engine(model, engine="native", memory_bytes=1, state_tokens=num_tokens).close()
    except RunError as error:
        return str(error).partition("cannot work: ")[2]
    raise AssertionError("a budget of one byte cannot work")


@click.command()
@click.argument("preset")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--layers", type=click.IntRange(min=1), help="Only the first so many.")
@click.option("--tokens", multiple=True, default=(4096, 32768), show_default=True)
def main(preset: str, model: Path, layers: int | None, tokens: tuple[int, ...]) -> None:
    """Write MODEL, if there is none, in the shape of PRESET; print what it needs, in MiB."""
    if not model.exists():
        write_with_holes(preset, model, layers)
    for num_tokens in tokens:
        print(f"{num_tokens} tokens: {division_of_a_budget(model, num_tokens)}")


if __name__ == "__main__":
    main()
