"""Checkpoint in, container out.

Each verb is a file: `convert`, `verify`, `inspect`, `export`, `publish` (which writes a
`model_card`); `repair` is a folder. `sources` presents every kind of input as an MLX checkpoint
read in slices: safetensors folders, published layouts that mlx-lm converts and quantizes, GGUF
files, Hub ids, and containers themselves. `stacks` finds the routed experts, `codings` how they are
quantized, both checked against the config, whose key names in all families are in `families`.
`spelling` remembers how the source's files were written so that `export` can write them again.
`cli` runs one of `commands`, `output` and `show` print, `errors` knows the exit code of every
exception, `interrupts` when Ctrl-C may strike.
mlx is imported only where a checkpoint must be converted or quantized.
"""

from kandiga_pack.convert import ConvertSummary, convert
from kandiga_pack.errors import PackError
from kandiga_pack.export import ExportSummary, export
from kandiga_pack.inspect import inspect
from kandiga_pack.publish import PublishSummary, publish
from kandiga_pack.repair import RepairSummary, repair
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.open import open_source
from kandiga_pack.verify import VerifyReport, verify

__all__ = [
    "ConvertSummary",
    "ExportSummary",
    "PackError",
    "PublishSummary",
    "RepairSummary",
    "Quantization",
    "VerifyReport",
    "convert",
    "export",
    "inspect",
    "open_source",
    "publish",
    "repair",
    "verify",
]
