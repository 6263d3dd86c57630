"""Find the stacks of routed experts in a checkpoint, and check them against its config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from formats import Layout
from kandiga_pack import families
from kandiga_pack.codings import StackPart, coded_parts, projection_widths, stated_values
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


def layer_number(name: str) -> int:
    """Return the decoder layer a tensor or module belongs to, -1 when to none."""
    match = _LAYER.search(name)
    return int(match[1]) if match else -1


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
    _check_num_layers(tensors, config, where)
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
    widths = projection_widths(found, config, prefix, where)
    parts = [
        part
        for projection, roles in found.items()
        for part in coded_parts(
            f"{prefix}.{TENSOR_NAMES[projection]}",
            projection,
            roles,
            widths[projection],
            config,
            where,
        )
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
            f"{where}: {prefix} holds {count} experts, but config.json says {stated_values(stated)}"
        )
    return count


def _check_num_layers(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
) -> None:
    """Refuse a number of layers that the checkpoint cannot have, or that it has more of."""
    stated = families.num_layers(config)
    if stated is None:
        return
    if stated > len(tensors):
        raise PackError(
            f"{where}: config.json says {stated} layers, but there are only {len(tensors)} tensors"
        )
    if families.has_prediction_layers(config):
        return
    for name in tensors:
        if _STACK_WEIGHT.fullmatch(name) and not OTHER_MODELS.search(name):
            layer = layer_number(name)
            if layer >= stated:
                raise PackError(
                    f"{where}: {name} is of layer {layer}, but config.json says {stated} layers"
                )


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
    says = f"says {stated_values(stated)}" if stated else "states no number of experts"
    return PackError(
        f"{where}: no routed experts among {len(tensors)} tensors, and config.json (model_type "
        f"{config.get('model_type')}) {says}; looked for 3-D tensors such as "
        "model.layers.N.mlp.switch_mlp.up_proj.weight, and for model.layers.N.mlp.experts.E.*"
    )


def _ranges(layers: list[int]) -> str:
    """Write [0, 1, 2, 5] as "0-2, 5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
