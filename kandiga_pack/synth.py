"""A published shape with made-up weights in, container out: for measuring at full size."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from kandiga_pack.convert import DEFAULT_SHARD_BYTES, ConvertSummary, check_destination, convert
from kandiga_pack.opening import Say
from kandiga_pack.progress import Progress
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.sources.synthetic import SyntheticSource


def synth(
    model: str,
    dest: str | Path,
    *,
    num_layers: int | None = None,
    quantization: Quantization | None = None,
    seed: int = 0,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    restart: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> ConvertSummary:
    """Write the container of a model that was never trained into a new folder `dest`.

    Everything but the numbers is as in the published model: names, shapes, bits, config. The
    numbers keep activations finite and send different tokens to different experts. An interrupted
    run is taken up by the same call; the same arguments give the same bytes.

    Args:
        model: a key of sources.synthetic.PRESETS, or a config.json or the folder it is in.
        num_layers: write only the first so many.
        quantization: affine bits and group size; None leaves the weights in bf16.
        seed: other seeds give other weights.
        restart: forget what an interrupted run has done.

    Raises:
        PackError, formats.KexpError, OSError: see errors.describe for what the user is told.
    """
    started = time.monotonic()
    if not Path(dest).with_name(f"{Path(dest).name}.partial").exists():
        check_destination(Path(dest))  # before the seconds that mlx-lm takes to import
    source = SyntheticSource(model, num_layers=num_layers, quantization=quantization, seed=seed)
    try:
        summary = convert(
            source, dest, shard_bytes=shard_bytes, restart=restart, progress=progress, say=say
        )
    finally:
        source.close()
    return replace(summary, seconds=time.monotonic() - started)
