"""A GGUF with made-up weights in the shape of one of our containers.

4 bits become Q4_0 and 8 bits Q8_0: with their scales 4.5 and 8.5 bits a weight, as ours with a
bf16 scale and bias for every 64. Codes are random and scales such that entries have the spread that
`kandiga-pack synth` gives them, so that routers send tokens to experts as evenly as ours do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
from gguf import GGMLQuantizationType, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from benchmarks.peers.gguf_shapes import architecture, text_config, writer_for
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.sources.synthetic import SyntheticSource
from kandiga_pack.sources.synthetic.values import Codes, Floats, Matrix, values_of

_TYPES = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}
# 2.4 MB of 4-bit blocks: random numbers are made once, and copied from different places.
_POOL_BLOCKS = 1 << 17
_PIECE_BLOCKS = 1 << 14


def write_gguf(model: Path, dest: Path) -> int:
    """Write a GGUF of the shape of a container; return its size in bytes.

    Args:
        model: folder with the container's config.json.
        dest: the file; it appears when it is whole.

    Raises UnknownShapeError for another architecture, ValueError for bits without a GGUF type.
    """
    config = json.loads((model / "config.json").read_text())
    quantization = config["quantization"]
    source = SyntheticSource(
        str(model),
        quantization=Quantization(quantization["bits"], quantization["group_size"]),
    )
    partial = dest.with_name(f"{dest.name}.partial")
    try:
        tensors = dict(_tensors(source, config))
        writer = writer_for(config, str(partial))
        for name, tensor in tensors.items():
            writer.add_tensor_info(
                name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(tensor.data(name, source))
        writer.close()
        partial.rename(dest)
    finally:
        source.close()
        partial.unlink(missing_ok=True)
    return dest.stat().st_size


class _Tensor:
    """One tensor: shape in weights, GGUF type, and where its numbers come from."""

    def __init__(self, source: SyntheticSource, name: str, num_layers: int) -> None:
        info = source.tensors[name]
        module = name.rpartition(".")[0]
        self.source_name = name
        self.scales: Floats | None = None
        self.shape = tuple(size for size in info.shape if size != 1) or (1,)
        self.type = GGMLQuantizationType.F32
        if matrix := source.matrices.get(module):
            scales = values_of(source.tensors[f"{module}.scales"], matrix, num_layers)
            self._quantize(info, matrix, scales)
        block_size, block_bytes = GGML_QUANT_SIZES[self.type]
        self.num_blocks = int(np.prod(self.shape)) // block_size
        self.nbytes = self.num_blocks * block_bytes

    def _quantize(self, info: TensorInfo, matrix: Matrix, scales: Codes | Floats) -> None:
        assert isinstance(scales, Floats)
        self.scales = scales
        rows = (*info.shape[:-1], matrix.in_features)
        self.shape = tuple(size for size in rows if size != 1)
        # llama.cpp multiplies by a vector, which it wants in float32.
        if len(self.shape) > 1:
            if matrix.bits not in _TYPES:
                raise ValueError(f"{info.name}: {matrix.bits} bits, a GGUF here has 4 and 8")
            self.type = _TYPES[matrix.bits]

    def data(self, name: str, source: SyntheticSource) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Return the tensor as it lies in the file."""
        if self.scales and self.type is not GGMLQuantizationType.F32:
            return _random_blocks(name, self.type, self.scales, self.num_blocks)
        rng = np.random.default_rng(crc32(name.encode()))
        if self.scales:
            deviation = (self.scales.low + self.scales.high) / 2 * _code_deviation(8)
            return (rng.standard_normal(self.shape) * deviation).astype(np.float32)
        numbers = source.read(self.source_name)
        if numbers.dtype == np.uint16:  # bf16
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        numbers = numbers.astype(np.float32).reshape(self.shape)
        # What a GGUF holds is the decay itself, not the logarithm of its size.
        return -np.exp(numbers) if self.source_name.endswith("A_log") else numbers


def _tensors(source: SyntheticSource, config: dict[str, object]) -> Iterator[tuple[str, _Tensor]]:
    num_layers = int(text_config(config)["num_hidden_layers"])
    names = get_tensor_name_map(architecture(config), num_layers)
    for name in source.tensors:
        if name.endswith((".scales", ".biases")):
            continue
        # The map knows the names of published checkpoints.
        known = name.removeprefix("language_model.").replace(".switch_mlp.", ".experts.")
        known = known.replace(".dt_bias", ".dt_proj.bias")
        found = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"{name}: the gguf package knows no name for this tensor")
        yield found, _Tensor(source, name, num_layers)


def _code_deviation(bits: int) -> float:
    """Return the standard deviation of a uniform code."""
    return float(np.sqrt(((1 << 2 * bits) - 1) / 12))


def _random_blocks(
    name: str, block_type: GGMLQuantizationType, scales: Floats, num_blocks: int
) -> NDArray[np.uint8]:
    """Return blocks (num_blocks, block bytes), other ones for every name."""
    pool = _pool(block_type, scales.low, scales.high)
    rng = np.random.default_rng(crc32(name.encode()))
    blocks = np.empty((num_blocks, pool.shape[1]), np.uint8)
    for first in range(0, num_blocks, _PIECE_BLOCKS):
        piece = blocks[first : first + _PIECE_BLOCKS]
        start = int(rng.integers(len(pool) - len(piece)))
        piece[:] = pool[start : start + len(piece)]
    return blocks


@lru_cache(maxsize=16)
def _pool(block_type: GGMLQuantizationType, low: float, high: float) -> NDArray[np.uint8]:
    """Return random blocks: a float16 scale, then codes."""
    rng = np.random.default_rng(0)
    _, block_bytes = GGML_QUANT_SIZES[block_type]
    pool = rng.integers(0, 256, (_POOL_BLOCKS, block_bytes), np.uint8)
    # Codes -8 .. 7 and -128 .. 127 lean to one side; scales of both signs even that out.
    sizes = rng.uniform(low, high, _POOL_BLOCKS) * rng.choice((-1, 1), _POOL_BLOCKS)
    pool[:, :2] = sizes.astype(np.float16)[:, None].view(np.uint8)
    return pool
