"""Find the stacks of routed experts in a checkpoint, and check them against its config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from formats import Layout, Part
from kandiga_pack import families
from kandiga_pack.errors import PackError
from kandiga_pack.sources.base import TensorInfo

PROJECTIONS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "gate_up_proj": "gate_up",
    "fc1": "fc1",
    "fc2": "fc2",
}
TENSOR_NAMES = {projection: name for name, projection in PROJECTIONS.items()}
# The projections that make an expert: SwitchGLU, SwitchGLU with gate and up fused, SwitchMLP.
COMPLETE_EXPERTS = ({"gate", "up", "down"}, {"gate_up", "down"}, {"fc1", "fc2"})
ROLES = ("weight", "scales", "biases", "bias", "global_scale")

_STACK_WEIGHT = re.compile(rf"(?P<prefix>.+)\.(?P<name>{'|'.join(PROJECTIONS)})\.weight")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")
# Stacks under these names are other models inside the checkpoint: multi-token prediction heads and
# vision or audio towers. They are carried with the dense tensors.
OTHER_MODELS = re.compile(r"(?:^|[._])(?:mtp|nextn|eagle|vision|visual|audio)(?:[._]|$)")

_FLOATS = ("f16", "bf16", "f32")
# mode -> (bits, group_size) it is defined for; affine has several.
_FIXED_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
_AFFINE_BITS = (2, 3, 4, 5, 6, 8)
_AFFINE_GROUP_SIZES = (32, 64, 128)


def layer_number(name: str) -> int:
    """Return the decoder layer a tensor or module belongs to, -1 when to none."""
    match = _LAYER.search(name)
    return int(match[1]) if match else -1


@dataclass(frozen=True, slots=True)
class StackPart:
    """One stacked tensor of a layer: axis 0 is the expert, the rest is the part of each expert."""

    tensor: TensorInfo
    part: Part


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """All routed experts of one layer.

    Attributes:
        layer: layer number, from the prefix.
        prefix: what stands before `.up_proj.weight`.
        num_experts: length of axis 0 of every part.
        parts: the stacked tensors.
    """

    layer: int
    prefix: str
    num_experts: int
    parts: tuple[StackPart, ...]

    @property
    def layout(self) -> Layout:
        """Where the parts of one expert go in its block."""
        return Layout.build(stacked.part for stacked in self.parts)


def find_stacks(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], *, where: str
) -> list[ExpertStack]:
    """Return the expert stacks of the checkpoint, by layer.

    Args:
        tensors: every tensor of the checkpoint.
        config: its config.json.
        where: the checkpoint's name, for messages.

    Raises:
        PackError: no stack, an incomplete one, or one that the config contradicts.
    """
    prefixes = _stack_prefixes(tensors, config)
    if not prefixes:
        raise none_found(tensors, config, where)
    stacks = [
        _build_stack(layer, prefix, tensors, config, where)
        for layer, prefix in sorted(prefixes.items())
    ]
    _check_layers({stack.layer for stack in stacks}, config, where)
    return stacks


def has_stacks(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> bool:
    """Whether any expert stack is there, complete or not."""
    return bool(_stack_prefixes(tensors, config))


def _stack_prefixes(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[int, str]:
    num_layers = families.num_layers(config)
    prefixes: dict[int, str] = {}
    for name, info in tensors.items():
        match = _STACK_WEIGHT.fullmatch(name)
        if match is None or len(info.shape) != 3:
            continue
        prefix = match["prefix"]
        layer = layer_number(prefix)
        if layer < 0 or OTHER_MODELS.search(prefix):
            continue
        # DeepSeek-like checkpoints append their prediction heads as layers past the last one.
        if num_layers is not None and layer >= num_layers:
            continue
        other = prefixes.setdefault(layer, prefix)
        if other != prefix:
            raise PackError(
                f"layer {layer} has two expert stacks, {other} and {prefix}; one is expected"
            )
    return prefixes


def _build_stack(
    layer: int,
    prefix: str,
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    where: str,
) -> ExpertStack:
    found = {
        projection: {
            role: info
            for role in ROLES
            if (info := tensors.get(f"{prefix}.{name}.{role}")) is not None
        }
        for name, projection in PROJECTIONS.items()
    }
    found = {projection: roles for projection, roles in found.items() if "weight" in roles}
    _check_complete(prefix, set(found), where)
    num_experts = _check_num_experts(prefix, found, config, where)
    widths = _widths(found, config, prefix, where)
    parts = [
        part
        for projection, roles in found.items()
        for part in _parts(prefix, projection, roles, widths[projection], config, where)
    ]
    return ExpertStack(layer, prefix, num_experts, tuple(parts))


def _check_complete(prefix: str, projections: set[str], where: str) -> None:
    if projections in COMPLETE_EXPERTS:
        return
    wanted = min(COMPLETE_EXPERTS, key=lambda complete: len(complete - projections))
    missing = ", ".join(
        f"{prefix}.{TENSOR_NAMES[projection]}.weight" for projection in sorted(wanted - projections)
    )
    raise PackError(f"{where}: tensor {missing} is missing; download the checkpoint again")


def _check_num_experts(
    prefix: str,
    found: Mapping[str, Mapping[str, TensorInfo]],
    config: Mapping[str, Any],
    where: str,
) -> int:
    counts = {
        info.name: info.shape[0] if info.shape else 0
        for roles in found.values()
        for info in roles.values()
    }
    name, count = next(iter(counts.items()))
    for other_name, other_count in counts.items():
        if other_count != count:
            raise PackError(
                f"{where}: {other_name} holds {other_count} experts, but {name} holds {count}"
            )
    stated = families.num_experts(config)
    if not stated:
        raise PackError(
            f"{where}: config.json states no number of experts (looked for "
            f"{', '.join(families.NUM_EXPERTS_KEYS)}); {prefix} holds {count}"
        )
    if count not in stated.values():
        raise PackError(
            f"{where}: {prefix} holds {count} experts, but config.json says {_stated(stated)}"
        )
    return count


@dataclass(frozen=True, slots=True)
class _Width:
    """Input and output features of a projection."""

    in_features: int
    out_features: int


def _widths(
    found: Mapping[str, Mapping[str, TensorInfo]],
    config: Mapping[str, Any],
    prefix: str,
    where: str,
) -> dict[str, _Width]:
    """Work out each projection's input width from the output width of its neighbour.

    A packed weight's columns do not tell its input width, because bits and group size are unknown
    yet. But the rows of `down` are what goes into `gate` and `up`, and the rows of these what goes
    into `down`.
    """
    rows = {projection: roles["weight"].shape[1] for projection, roles in found.items()}
    last = "fc2" if "fc2" in rows else "down"
    hidden = rows[last]
    inner = {
        projection: count // 2 if projection == "gate_up" else count
        for projection, count in rows.items()
        if projection != last
    }
    if len(set(inner.values())) != 1:
        raise PackError(f"{where}: {prefix}: gate_proj and up_proj differ in rows: {inner}")
    intermediate = next(iter(inner.values()))
    for key, stated, seen in (
        ("hidden size", families.hidden_sizes(config), hidden),
        ("intermediate size", families.intermediate_sizes(config), intermediate),
    ):
        if stated and seen not in stated.values():
            raise PackError(
                f"{where}: {prefix}: experts of {key} {seen}, but config.json says "
                f"{_stated(stated)}"
            )
    return {
        projection: _Width(intermediate if projection == last else hidden, count)
        for projection, count in rows.items()
    }


@dataclass(frozen=True, slots=True)
class _Coding:
    """How a projection's weights are coded; bits and group_size are 0 for mode "none"."""

    mode: str
    bits: int
    group_size: int


_UNQUANTIZED = _Coding("none", 0, 0)


def _parts(
    prefix: str,
    projection: str,
    roles: Mapping[str, TensorInfo],
    width: _Width,
    config: Mapping[str, Any],
    where: str,
) -> list[StackPart]:
    coding = _coding(roles, width, where)
    path = f"{prefix}.{TENSOR_NAMES[projection]}"
    _check_config_quantization(path, coding, config, where)
    _check_shapes(roles, width, coding, where)
    return [
        StackPart(info, _part(projection, role, info, _UNQUANTIZED if role == "bias" else coding))
        for role, info in roles.items()
    ]


def _part(projection: str, role: str, info: TensorInfo, coding: _Coding) -> Part:
    return Part(
        projection,
        role,
        info.dtype,
        info.shape[1:],
        coding.mode,
        coding.bits,
        coding.group_size,
    )


def _coding(roles: Mapping[str, TensorInfo], width: _Width, where: str) -> _Coding:
    weight, scales = roles["weight"], roles.get("scales")
    if scales is None:
        if weight.dtype not in _FLOATS:
            wanted = f"{weight.name.removesuffix('weight')}scales"
            if weight.dtype == "u32":
                raise PackError(
                    f"{where}: tensor {wanted} is missing, and {weight.name} is quantized; "
                    "download the checkpoint again"
                )
            raise _wrong_dtype(weight, "bf16, f16, f32 or u32 with scales", where)
        return _UNQUANTIZED
    if weight.dtype != "u32":
        raise _wrong_dtype(weight, "u32 for a quantized weight", where)
    if len(scales.shape) != 3:
        raise _wrong_shape(scales, (weight.shape[0], width.out_features, "in/group_size"), where)
    bits, bits_rest = divmod(weight.shape[2] * 32, width.in_features)
    group_size, group_rest = divmod(width.in_features, max(scales.shape[2], 1))
    coding = _Coding(_mode(roles, bits, group_size, where), bits, group_size)
    if bits_rest or group_rest or not _exists(coding):
        raise PackError(
            f"{where}: {weight.name} with {weight.shape[2]} columns and {scales.shape[2]} scales a "
            f"row is no quantization of {width.in_features} inputs ({bits} bits, group "
            f"{group_size}, {coding.mode})"
        )
    return coding


def _mode(roles: Mapping[str, TensorInfo], bits: int, group_size: int, where: str) -> str:
    scales = roles["scales"]
    if scales.dtype in _FLOATS:
        biases = roles.get("biases")
        if biases is None:
            raise PackError(
                f"{where}: tensor {scales.name.removesuffix('scales')}biases is missing; affine "
                "quantization needs it; download the checkpoint again"
            )
        if biases.dtype != scales.dtype:
            raise _wrong_dtype(biases, f"{scales.dtype} as its scales", where)
        return "affine"
    if scales.dtype != "u8":
        raise _wrong_dtype(scales, "bf16, f16 or f32 (affine), or u8 (mxfp4, mxfp8, nvfp4)", where)
    for mode, fixed in _FIXED_MODES.items():
        if fixed == (bits, group_size):
            return mode
    return "unknown mode"


def _exists(coding: _Coding) -> bool:
    if coding.mode == "affine":
        return coding.bits in _AFFINE_BITS and coding.group_size in _AFFINE_GROUP_SIZES
    return coding.mode in _FIXED_MODES


def _check_config_quantization(
    path: str, coding: _Coding, config: Mapping[str, Any], where: str
) -> None:
    """Compare with the config's `quantization` entry: the override of `path`, else its defaults.

    A path the entry does not name may still differ from the defaults: mlx-lm reads bits and group
    size off the shapes there. Only a contradiction of something said about this very path, or of a
    config that has no overrides at all, is an error.
    """
    quantization = config.get("quantization")
    if not isinstance(quantization, dict):
        if coding.mode != "none" and "quantization_config" not in config:
            raise PackError(
                f"{where}: {path} is quantized ({_coding_text(coding)}), but config.json has no "
                "quantization entry"
            )
        return
    override = quantization.get(path)
    if override is False:
        stated = _UNQUANTIZED
    elif isinstance(override, dict):
        stated = _stated_coding({**quantization, **override})
    elif any(isinstance(value, (dict, bool)) for value in quantization.values()):
        return
    else:
        stated = _stated_coding(quantization)
    if coding.mode == "none" and not isinstance(override, dict):
        return
    if coding != stated:
        raise PackError(
            f"{where}: {path} is {_coding_text(coding)}, but config.json says "
            f"{_coding_text(stated)}"
        )


def _stated_coding(entry: Mapping[str, Any]) -> _Coding:
    return _Coding(
        str(entry.get("mode", "affine")), int(entry.get("bits", 0)), int(entry.get("group_size", 0))
    )


def _check_shapes(
    roles: Mapping[str, TensorInfo], width: _Width, coding: _Coding, where: str
) -> None:
    count, rows = roles["weight"].shape[0], width.out_features
    columns = width.in_features * coding.bits // 32 if coding.bits else width.in_features
    groups = width.in_features // coding.group_size if coding.group_size else 0
    wanted: dict[str, tuple[int, ...]] = {
        "weight": (count, rows, columns),
        "scales": (count, rows, groups),
        "biases": (count, rows, groups),
        "bias": (count, rows),
        "global_scale": (count,),
    }
    for role, info in roles.items():
        if info.shape != wanted[role]:
            raise _wrong_shape(info, wanted[role], where)
        if role in ("bias", "global_scale") and info.dtype not in _FLOATS:
            raise _wrong_dtype(info, "bf16, f16 or f32", where)
        if role in ("biases", "global_scale") and coding.mode == "none":
            raise PackError(f"{where}: {info.name} stands beside an unquantized weight")


def _check_layers(found: set[int], config: Mapping[str, Any], where: str) -> None:
    wanted = families.expert_layers(config)
    if wanted is None:
        return
    if missing := sorted(wanted - found):
        raise PackError(
            f"{where}: config.json says that layers {_ranges(sorted(wanted))} have experts, but no "
            f"expert tensors were found for {_ranges(missing)}; download the checkpoint again"
        )
    if extra := sorted(found - wanted):
        raise PackError(
            f"{where}: layers {_ranges(extra)} have expert tensors, but config.json says that only "
            f"layers {_ranges(sorted(wanted))} have experts"
        )


def none_found(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
) -> PackError:
    """Return the error for a checkpoint without routed experts, saying what was looked for."""
    stated = families.num_experts(config)
    says = f"says {_stated(stated)}" if stated else "states no number of experts"
    return PackError(
        f"{where}: no routed experts among {len(tensors)} tensors, and config.json (model_type "
        f"{config.get('model_type')}) {says}; looked for 3-D tensors such as "
        "model.layers.N.mlp.switch_mlp.up_proj.weight, and for model.layers.N.mlp.experts.E.*"
    )


def _wrong_dtype(info: TensorInfo, wanted: str, where: str) -> PackError:
    return PackError(f"{where}: {info.name} has dtype {info.dtype}, expected {wanted}")


def _wrong_shape(info: TensorInfo, wanted: tuple[object, ...], where: str) -> PackError:
    expected = "(" + ", ".join(str(size) for size in wanted) + ")"
    return PackError(f"{where}: {info.name} has shape {info.shape}, expected {expected}")


def _stated(values: Mapping[str, int]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _coding_text(coding: _Coding) -> str:
    if coding.mode == "none":
        return "unquantized"
    return f"{coding.mode} {coding.bits}-bit, group {coding.group_size}"


def _ranges(layers: list[int]) -> str:
    """Write [0, 1, 2, 5] as "0-2, 5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
