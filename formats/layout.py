"""Layout classes: where the parts of an expert lie inside its block.

A checkpoint has few distinct expert shapes, often one, so an expert's index entry holds only the
number of its layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from formats import dtypes
from formats.constants import (
    BLOCK_ALIGN,
    MAX_BLOCK_BYTES,
    MAX_PARTS,
    TENSOR_ALIGN,
    extent_fits,
    round_up,
)
from formats.errors import KexpError

# Numbers in the file. Their order is the order of the parts in a block, with the projections that
# are multiplied together side by side.
PROJECTIONS = {"gate": 1, "up": 2, "gate_up": 3, "down": 4, "fc1": 5, "fc2": 6}
ROLES = {"weight": 1, "scales": 2, "biases": 3, "bias": 4, "global_scale": 5}
MODES = {"none": 1, "affine": 2, "mxfp4": 3, "mxfp8": 4, "nvfp4": 5}

# mode -> (bits, group sizes) that MLX can compute with.
_QUANTIZATIONS = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


@dataclass(frozen=True)
class Part:
    """One tensor of one expert.

    projection: "gate", "up", "gate_up", "down", "fc1" or "fc2".
    role: "weight", "scales", "biases", "bias" or "global_scale".
    dtype: name of the stored element type.
    shape: as stored, 0 to 2 dims; a quantized weight is (out, in * bits / 32) u32.
    mode, bits, group_size: the projection's quantization; "none", 0, 0 when there is none, and
        always so for a "bias".
    offset_bytes: from the start of the block.
    length_bytes: of the data, without padding.
    """

    projection: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    mode: str = "none"
    bits: int = 0
    group_size: int = 0
    offset_bytes: int = 0
    length_bytes: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """(projection, role): unique in a layout."""
        return self.projection, self.role

    def __str__(self) -> str:
        return f"{self.projection}.{self.role} {self.dtype} {self.shape}"


@dataclass(frozen=True)
class Layout:
    """The parts of an expert's block. Build one with `Layout.build`.

    Raises:
        KexpError: E_LAYOUT or E_DTYPE if the parts are not a block that a kernel could trust:
            canonical order, aligned tiling, lengths that follow from the shapes, and scales whose
            shape follows from the weight.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)

    @classmethod
    def build(cls, parts: Iterable[Part]) -> Layout:
        """Return the layout of `parts`, ordered and placed; their offsets and lengths are ignored.

        >>> layout = Layout.build([Part("up", "weight", "f16", (3, 5))])
        >>> layout.payload_bytes, layout.block_bytes
        (30, 16384)
        """
        placed: list[Part] = []
        offset = 0
        for part in sorted(parts, key=_order):
            length = dtypes.num_bytes(part.dtype, part.shape)
            placed.append(replace(part, offset_bytes=offset, length_bytes=length))
            offset = round_up(offset + length, TENSOR_ALIGN)
        return cls(tuple(placed))

    @property
    def payload_bytes(self) -> int:
        """Bytes from the block's start to the end of its last part."""
        return self.parts[-1].offset_bytes + self.parts[-1].length_bytes

    @property
    def block_bytes(self) -> int:
        """The payload rounded up to whole blocks."""
        return round_up(self.payload_bytes, BLOCK_ALIGN)

    def part(self, projection: str, role: str) -> Part | None:
        """Return that part, or None if the layout has none."""
        for part in self.parts:
            if part.key == (projection, role):
                return part
        return None


def _order(part: Part) -> tuple[int, int]:
    if part.projection not in PROJECTIONS:
        raise _wrong(f"projection {part.projection!r}, wanted one of {', '.join(PROJECTIONS)}")
    if part.role not in ROLES:
        raise _wrong(f"role {part.role!r}, wanted one of {', '.join(ROLES)}")
    return PROJECTIONS[part.projection], ROLES[part.role]


def _wrong(message: str) -> KexpError:
    return KexpError("E_LAYOUT", f"layout: {message}")


def _check_parts(parts: Sequence[Part]) -> None:
    if not 1 <= len(parts) <= MAX_PARTS:
        raise _wrong(f"{len(parts)} parts, wanted 1..{MAX_PARTS}")
    floor = 0
    previous = (0, 0)
    for part in parts:
        order = _order(part)
        if order <= previous:
            raise _wrong(f"part {part} is repeated or out of order")
        previous = order
        _check_part(part)
        wanted = round_up(floor, TENSOR_ALIGN)
        if part.offset_bytes != wanted:
            raise _wrong(f"part {part} begins at {part.offset_bytes}, wanted {wanted}")
        if not extent_fits(part.offset_bytes, part.length_bytes, MAX_BLOCK_BYTES):
            raise _wrong(f"part {part} leaves the largest block, {MAX_BLOCK_BYTES} bytes")
        floor = part.offset_bytes + part.length_bytes
    for projection in PROJECTIONS:
        by_role = {part.role: part for part in parts if part.projection == projection}
        if by_role:
            _check_projection(projection, by_role)


def _check_part(part: Part) -> None:
    if len(part.shape) > 2 or any(not 1 <= dim < 2**32 for dim in part.shape):
        raise _wrong(f"part {part} has an impossible shape")
    wanted = dtypes.num_bytes(part.dtype, part.shape)
    if part.length_bytes != wanted:
        raise _wrong(f"part {part} has {part.length_bytes} bytes, wanted {wanted}")
    if part.mode == "none":
        if part.bits or part.group_size:
            raise _wrong(
                f"part {part} is not quantized but has bits {part.bits}, "
                f"group_size {part.group_size}; wanted 0, 0"
            )
        return
    if part.mode not in _QUANTIZATIONS:
        raise _wrong(f"part {part} has mode {part.mode!r}, wanted one of {', '.join(MODES)}")
    bits, group_sizes = _QUANTIZATIONS[part.mode]
    if part.bits not in bits or part.group_size not in group_sizes:
        raise _wrong(
            f"part {part} is {part.mode} with bits {part.bits}, group_size {part.group_size}; "
            f"{part.mode} has bits {bits}, group sizes {group_sizes}"
        )


def _check_projection(projection: str, by_role: dict[str, Part]) -> None:
    weight = by_role.get("weight")
    if weight is None:
        raise _wrong(f"projection {projection} has no weight")
    if len(weight.shape) != 2:
        raise _wrong(f"part {weight} wanted as (out, in)")
    bias = by_role.get("bias")
    if bias is not None and (bias.mode != "none" or bias.shape != weight.shape[:1]):
        raise _wrong(f"part {bias} wanted unquantized, one for each of {weight.shape[0]} rows")
    quantized = {role: part for role, part in by_role.items() if role != "bias"}
    if weight.mode == "none":
        if len(quantized) > 1:
            raise _wrong(f"part {weight} is not quantized, yet has {', '.join(quantized)}")
        return
    for part in quantized.values():
        if (part.mode, part.bits, part.group_size) != (weight.mode, weight.bits, weight.group_size):
            raise _wrong(f"part {part} is not quantized as its weight is")
    _check_scales(weight, quantized)


def _check_scales(weight: Part, quantized: dict[str, Part]) -> None:
    if weight.dtype != "u32":
        raise _wrong(f"part {weight} is quantized, so its dtype wanted is u32")
    rows, words = weight.shape
    in_features, left_over = divmod(words * 32, weight.bits)
    if left_over or in_features % weight.group_size:
        raise _wrong(
            f"part {weight} does not hold whole groups of {weight.group_size} x {weight.bits} bits"
        )
    wanted = (rows, in_features // weight.group_size)
    names = ("scales", "biases") if weight.mode == "affine" else ("scales",)
    for name in ("scales", "biases"):
        part = quantized.get(name)
        if (part is not None) != (name in names):
            raise _wrong(f"part {weight} is {weight.mode}, which has {' and '.join(names)}")
        if part is None:
            continue
        if part.shape != wanted:
            raise _wrong(f"part {part} wanted with shape {wanted}, as its weight {weight} has")
        allowed = ("f16", "bf16", "f32") if weight.mode == "affine" else ("u8",)
        if part.dtype not in allowed:
            raise _wrong(f"part {part} wanted as {' or '.join(allowed)}")
    scale = quantized.get("global_scale")
    if scale is None:
        return
    if weight.mode != "nvfp4":
        raise _wrong(f"part {weight} is {weight.mode}, which has no global_scale")
    if scale.dtype != "f32" or math.prod(scale.shape) != 1:
        raise _wrong(f"part {scale} wanted as one f32")
