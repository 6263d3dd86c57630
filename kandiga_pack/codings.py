"""How the weights of a stack are coded: told by shapes and dtypes, checked against the config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from formats import Part
from kandiga_pack import families
from kandiga_pack.errors import PackError
from kandiga_pack.sources.base import TensorInfo

_FLOATS = ("f16", "bf16", "f32")
# mode -> (bits, group_size) it is defined for; affine has several.
_FIXED_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
_AFFINE_BITS = (2, 3, 4, 5, 6, 8)
_AFFINE_GROUP_SIZES = (32, 64, 128)
_IN_LAYERS = re.compile(r"\blayers\.\d+\..*")


@dataclass(frozen=True, slots=True)
class StackPart:
    """One stacked tensor of a layer: axis 0 is the expert, the rest is the part of each expert."""

    tensor: TensorInfo
    part: Part


@dataclass(frozen=True, slots=True)
class Width:
    """Input and output features of a projection."""

    in_features: int
    out_features: int


def projection_widths(
    found: Mapping[str, Mapping[str, TensorInfo]],
    config: Mapping[str, Any],
    prefix: str,
    where: str,
) -> dict[str, Width]:
    """Work out each projection's input width from the output width of its neighbour.

    A packed weight's columns do not tell its input width, because bits and group size are unknown
    yet. But the rows of `down` are what goes into `gate` and `up`, and the rows of these what goes
    into `down`.

    Raises:
        PackError: the widths do not fit together, or config.json states others.
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
                f"{stated_values(stated)}"
            )
    return {
        projection: Width(intermediate if projection == last else hidden, count)
        for projection, count in rows.items()
    }


@dataclass(frozen=True, slots=True)
class _Coding:
    """How a projection's weights are coded; bits and group_size are 0 for mode "none"."""

    mode: str
    bits: int
    group_size: int


_UNQUANTIZED = _Coding("none", 0, 0)


def coded_parts(
    path: str,
    projection: str,
    roles: Mapping[str, TensorInfo],
    width: Width,
    config: Mapping[str, Any],
    where: str,
) -> list[StackPart]:
    """Return the stacked tensors of one projection, with the coding their shapes give away.

    Args:
        path: the projection's module, as the config's quantization entry would name it.
        roles: its tensors by role; "weight" is among them.
        where: the checkpoint's name, for messages.

    Raises:
        PackError: a dtype or shape that belongs to no coding, or not to the one config.json states.
    """
    coding = _coding(roles, width, where)
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


def _coding(roles: Mapping[str, TensorInfo], width: Width, where: str) -> _Coding:
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
    """Compare with the config's `quantization` entry: the override of `path`, else its defaults,
    as mlx-lm takes them."""
    quantization = config.get("quantization")
    if not isinstance(quantization, dict):
        if coding.mode != "none" and "quantization_config" not in config:
            raise PackError(
                f"{where}: {path} is quantized ({_coding_text(coding)}), but config.json has no "
                "quantization entry"
            )
        return
    override = _override(quantization, path)
    if override is False:
        stated = _UNQUANTIZED
    elif isinstance(override, dict):
        stated = _stated_coding({**quantization, **override})
    else:
        stated = _stated_coding(quantization)
    if coding.mode == "none" and not isinstance(override, dict):
        return
    if coding != stated:
        raise PackError(
            f"{where}: {path} is {_coding_text(coding)}, but config.json says "
            f"{_coding_text(stated)}"
        )


def _override(quantization: Mapping[str, Any], path: str) -> object:
    """Return what the config says about `path` itself, None if nothing.

    The same module may have another prefix there: multimodal families rename theirs as they load.
    """
    if path in quantization:
        return quantization[path]
    tail = _in_layers(path)
    others = (value for key, value in quantization.items() if tail and _in_layers(key) == tail)
    return next(others, None)


def _in_layers(path: str) -> str | None:
    """Return "layers.3.mlp.up_proj" of "model.layers.3.mlp.up_proj"."""
    match = _IN_LAYERS.search(path)
    return match[0] if match else None


def _stated_coding(entry: Mapping[str, Any]) -> _Coding:
    return _Coding(
        str(entry.get("mode", "affine")), int(entry.get("bits", 0)), int(entry.get("group_size", 0))
    )


def _check_shapes(
    roles: Mapping[str, TensorInfo], width: Width, coding: _Coding, where: str
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


def _wrong_dtype(info: TensorInfo, wanted: str, where: str) -> PackError:
    return PackError(f"{where}: {info.name} has dtype {info.dtype}, expected {wanted}")


def _wrong_shape(info: TensorInfo, wanted: tuple[object, ...], where: str) -> PackError:
    expected = "(" + ", ".join(str(size) for size in wanted) + ")"
    return PackError(f"{where}: {info.name} has shape {info.shape}, expected {expected}")


def _coding_text(coding: _Coding) -> str:
    if coding.mode == "none":
        return "unquantized"
    return f"{coding.mode} {coding.bits}-bit, group {coding.group_size}"


def stated_values(values: Mapping[str, int]) -> str:
    """Write what a config states, for messages."""
    return ", ".join(f"{key} = {value}" for key, value in values.items())
