"""Where each family's config says which layers have experts, how many, and how wide."""

from typing import Any

import pytest

from checkpoints import FAMILIES, family_config
from kandiga_pack import families


@pytest.mark.parametrize("family", FAMILIES)
def test_every_config_is_understood(family: str) -> None:
    config = family_config(family)
    assert families.num_layers(config)
    assert families.num_experts(config)
    assert families.top_k(config)
    assert families.hidden_sizes(config)
    assert isinstance(families.activation(config), str)
    if family != "minimax_m3_vl":  # without its list of layers the config does not tell
        assert families.expert_layers(config)


CASES: dict[str, tuple[dict[str, Any], set[int]]] = {
    "every layer": ({"model_type": "mixtral"}, {0, 1, 2, 3, 4, 5}),
    "first dense": ({"first_k_dense_replace": 2}, {2, 3, 4, 5}),
    "first dense, every other": ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, {2, 4}),
    "list of frequencies": (
        {"first_k_dense_replace": 0, "moe_layer_freq": [0, 1, 1, 0, 1, 1]},
        {1, 2, 4, 5},
    ),
    "sparse step": ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, {1, 5}),
    "dense layers": ({"num_dense_layers": 4}, {4, 5}),
    "layer types": ({"mlp_layer_types": ["dense", *["sparse"] * 5]}, {1, 2, 3, 4, 5}),
    "booleans": ({"is_moe_layer": [False, True] * 3}, {1, 3, 5}),
    "pattern": ({"hybrid_override_pattern": "ME*-ME"}, {1, 5}),
    "pattern of a list": ({"hybrid_override_pattern": ["M", "E"]}, {1}),
    "enumerated": ({"moe_layers_enum": "1, 2,4"}, {1, 2, 4}),
    "interval": (
        {"moe_layer_start_index": [1, 3], "moe_layer_end_index": 4, "moe_layer_interval": 2},
        {1, 3},
    ),
    "interleaved": ({"interleave_moe_layer_step": 3}, {2, 5}),
    "period": ({"expert_layer_period": 2, "expert_layer_offset": 1}, {1, 3, 5}),
    "nested": ({"text_config": {"num_hidden_layers": 2, "first_k_dense_replace": 1}}, {1}),
}


@pytest.mark.parametrize("case", CASES)
def test_expert_layers(case: str) -> None:
    config, layers = CASES[case]
    assert families.expert_layers({"num_hidden_layers": 6, **config}) == layers


def test_unknown_rules_are_not_guessed() -> None:
    assert families.expert_layers({"model_type": "new_moe", "num_hidden_layers": 6}) is None


def test_counts_of_several_keys_and_lists() -> None:
    config = {"num_experts": 8, "text_config": {"num_hidden_layers": 1, "n_routed_experts": 16}}
    assert families.num_experts(config) == {"n_routed_experts": 16, "num_experts": 8}
    assert families.intermediate_sizes({"moe_intermediate_size": [1536, 512]}) == {
        "moe_intermediate_size": 1536,
        "moe_intermediate_size[1]": 512,
    }
    assert families.top_k({"moe_topk": [2, 2]}) == 2
