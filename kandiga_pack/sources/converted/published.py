"""Find the tensors of routed experts in a checkpoint as its makers publish it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kandiga_pack import families
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.stacks import OTHER_MODELS, layer_number

_PER_EXPERT = re.compile(r"(?P<head>.+\.(?:experts|mlp))\.(?P<expert>\d+)\.(?P<tail>.+)")
_STACKED = re.compile(r"\.(?:experts|switch_mlp|switch_glu|moe|block_sparse_moe)\.")


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """A published tensor that holds weights of routed experts.

    expert: the expert of a tensor of its own, None for a stack along axis 0.
    template: the name with `{}` in place of the expert number.
    """

    info: TensorInfo
    expert: int | None
    template: str


def has_published_experts(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> bool:
    """Whether anything looks like a routed expert, alone or stacked."""
    counts = set(families.num_experts(config).values())
    return bool(expert_tensors(tensors, config, counts))


def expert_tensors(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], num_experts: Collection[int]
) -> dict[int, list[ExpertTensor]]:
    """Group the tensors that hold routed experts by layer.

    Args:
        num_experts: lengths of axis 0 that make a tensor a stack.
    """
    num_layers = families.num_layers(config)
    found: dict[int, list[ExpertTensor]] = {}
    for name, info in tensors.items():
        layer = layer_number(name)
        if layer < 0 or OTHER_MODELS.search(name):
            continue
        if num_layers is not None and layer >= num_layers:
            continue
        if match := _PER_EXPERT.fullmatch(name):
            template = f"{match['head']}.{{}}.{match['tail']}"
            entry = ExpertTensor(info, int(match["expert"]), template)
        elif _STACKED.search(name) and info.shape[:1] and info.shape[0] in num_experts:
            entry = ExpertTensor(info, None, name)
        else:
            continue
        found.setdefault(layer, []).append(entry)
    return found
