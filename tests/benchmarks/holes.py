"""A published shape at its full number of layers, whose experts are holes in its files.

Dense weights, sizes, offsets and checksums are real; experts are zeros that take no disk, and
blocks of them are read as fast as the file system makes zeros. For memory, not for speed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

from formats import Layout
from formats.block_pipeline import BlockPipeline
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.synth import synth

FOUR_BITS = Quantization(4, 64)


def write_with_holes(preset: str, dest: Path, num_layers: int | None = None) -> None:
    """Write the container of a preset or config.json; it takes as much disk as dense weights do.

    num_layers: of them, None for all.
    """
    with (
        patch.object(BlockPipeline, "submit", _leave_a_hole),
        patch("kandiga_pack.convert.check_free_space", lambda *_: None),
    ):
        synth(preset, dest, num_layers=num_layers, quantization=FOUR_BITS)


def _leave_a_hole(
    pipeline: BlockPipeline,
    layout: Layout,
    fill: object,
    write: object,
    done: Callable[[int, bytes], None],
) -> None:
    done(*_checksums_of_zeros(layout.payload_bytes))


@lru_cache
def _checksums_of_zeros(length: int) -> tuple[int, bytes]:
    zeros = bytes(length)
    return zlib.crc32(zeros), hashlib.sha256(zeros).digest()
