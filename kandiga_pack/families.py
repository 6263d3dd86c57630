"""Where the configs of the MoE families keep what a packer must check: one table per fact.

Keys are those of the config.json files that mlx-lm's 44 SwitchGLU/SwitchMLP model files read. A
multimodal config nests them under one of NESTED_CONFIGS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kandiga_pack.errors import PackError

Config = Mapping[str, Any]

NESTED_CONFIGS = ("text_config", "llm_config", "language_config", "text")

NUM_EXPERTS_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
NUM_LAYERS_KEYS = ("num_hidden_layers", "num_layers", "n_layer")
# Kimi K3, Muse Spark and Nemotron H may route a narrower vector, so either width may be right.
HIDDEN_SIZE_KEYS = (
    "hidden_size",
    "n_embd",
    "model_dim",
    "routed_expert_hidden_size",
    "moe_hidden_size",
    "moe_latent_size",
)
# A dense layer's intermediate_size is an expert's too where the family has no other key.
INTERMEDIATE_SIZE_KEYS = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
)
ACTIVATION_KEYS = (
    "hidden_act",
    "hidden_activation",
    "mlp_hidden_act",
    "moe_activation",
    "activation_function",
)

# Families whose every layer routes to experts, whatever the config says.
EVERY_LAYER_ROUTES = frozenset(
    {
        "deepseek_v41",
        "gemma4_text",
        "gpt_oss",
        "granitemoe",
        "granitemoehybrid",
        "hunyuan",
        "longcat_flash",
        "longcat_flash_ngram",
        "mellum",
        "minimax",
        "minimax_m2",
        "mixtral",
        "muse_spark",
        "olmoe",
        "phimoe",
        "phixtral",
        "qwen2_moe",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
    }
)


def text_config(config: Config) -> Config:
    """Return the language model's own part of a config."""
    for key in NESTED_CONFIGS:
        nested = config.get(key)
        if isinstance(nested, dict) and _first(nested, NUM_LAYERS_KEYS) is not None:
            return nested
    return config


def num_layers(config: Config) -> int | None:
    """Return the number of decoder layers the config states."""
    pattern = text_config(config).get("hybrid_override_pattern")
    if pattern:  # Nemotron H counts layers by this pattern
        return len(pattern)
    stated = list(_named_ints(text_config(config), NUM_LAYERS_KEYS).values())
    return stated[0] if stated else None


def num_experts(config: Config) -> dict[str, int]:
    """Return every expert count the config states, by key; several may stand side by side."""
    return _named_ints(config, NUM_EXPERTS_KEYS)


def top_k(config: Config) -> int | None:
    """Return the number of experts a token is routed to."""
    stated = list(_named_ints(config, TOP_K_KEYS).values())
    return stated[0] if stated else None


def hidden_sizes(config: Config) -> dict[str, int]:
    """Return the widths an expert's input may have, by key."""
    return _named_ints(config, HIDDEN_SIZE_KEYS)


def intermediate_sizes(config: Config) -> dict[str, int]:
    """Return the widths inside an expert that the config states, by key."""
    return _named_ints(config, INTERMEDIATE_SIZE_KEYS)


def activation(config: Config) -> str:
    """Return the name of the experts' activation; families without a key use SiLU."""
    value = _first(text_config(config), ACTIVATION_KEYS)
    return value if isinstance(value, str) else "silu"


def expert_layers(config: Config) -> frozenset[int] | None:
    """Return the layers whose MLP routes to experts, or None where the config does not tell.

    Raises PackError for a config whose statement about it makes no sense.
    """
    text = text_config(config)
    count = num_layers(config)
    if count is None:
        return None
    if text.get("model_type", config.get("model_type")) in EVERY_LAYER_ROUTES:
        return frozenset(range(count))
    rules = dict(_LAYER_RULES)
    if isinstance(text.get("moe_layer_freq"), list):  # a number belongs to another rule
        rules = {"moe_layer_freq": lambda text, layer: bool(text["moe_layer_freq"][layer])}
    for stated, routes in rules.items():
        if text.get(stated) is None:
            continue
        try:
            return frozenset(layer for layer in range(count) if routes(text, layer))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise PackError(
                f"config.json: {stated} = {repr(text[stated])[:80]} does not say which of {count} "
                "layers have experts"
            ) from error
    return None


def has_prediction_layers(config: Config) -> bool:
    """Whether the config speaks of multi-token prediction, whose layers may follow the decoder's.

    DeepSeek-like families count them under num_nextn_predict_layers; others say mtp.
    """
    return any(
        value
        for scope in (text_config(config), config)
        for key, value in scope.items()
        if "nextn" in key or "mtp" in key
    )


def _from_first_k(text: Config, layer: int) -> bool:
    after_dense = layer >= text["first_k_dense_replace"]
    return bool(after_dense and layer % text.get("moe_layer_freq", 1) == 0)


def _sparse_step(text: Config, layer: int) -> bool:
    dense = layer in (text.get("mlp_only_layers") or ())
    return not dense and bool((layer + 1) % text["decoder_sparse_step"] == 0)


def _ernie_interval(text: Config, layer: int) -> bool:
    first, last = text["moe_layer_start_index"], text.get("moe_layer_end_index")
    first = min(first) if isinstance(first, list) else first
    last = max(last) if isinstance(last, list) else last
    in_range = layer >= first and (last is None or layer <= last)
    return bool(in_range and (layer + 1) % text.get("moe_layer_interval", 1) == 0)


# Tried in this order: the first key a config states decides. Lists before numbers, because a config
# that carries both means the list.
_LAYER_RULES: tuple[tuple[str, Callable[[Config, int], bool]], ...] = (
    ("mlp_layer_types", lambda text, layer: text["mlp_layer_types"][layer] == "sparse"),
    ("is_moe_layer", lambda text, layer: bool(text["is_moe_layer"][layer])),
    (
        "hybrid_override_pattern",
        lambda text, layer: text["hybrid_override_pattern"][layer] == "E",
    ),
    (
        "moe_layers_enum",
        lambda text, layer: str(layer) in text["moe_layers_enum"].replace(" ", "").split(","),
    ),
    ("first_k_dense_replace", _from_first_k),
    ("decoder_sparse_step", _sparse_step),
    ("num_dense_layers", lambda text, layer: layer >= text["num_dense_layers"]),
    ("moe_layer_start_index", _ernie_interval),
    (
        "interleave_moe_layer_step",
        lambda text, layer: (layer + 1) % text["interleave_moe_layer_step"] == 0,
    ),
    (
        "expert_layer_period",
        lambda text, layer: (
            (layer + text["expert_layer_offset"]) % text["expert_layer_period"] == 0
        ),
    ),
)


def _named_ints(config: Config, keys: tuple[str, ...]) -> dict[str, int]:
    """Collect integer values of `keys`, nested config first; a list states each of its values.

    Raises PackError for a number in quotes, or one with a fraction.
    """
    found: dict[str, int] = {}
    for scope in (text_config(config), config):
        for key in keys:
            if isinstance(scope.get(key), str | float):
                raise PackError(
                    f"config.json: {key} = {json.dumps(scope[key])[:80]}, expected an integer"
                )
            for position, value in enumerate(_flatten(scope.get(key))):
                found.setdefault(key if position == 0 else f"{key}[{position}]", value)
    return found


def _flatten(value: object) -> Iterator[int]:
    if isinstance(value, list):
        for item in value:
            yield from _flatten(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _first(config: Config, keys: tuple[str, ...]) -> object:
    return next((config[key] for key in keys if config.get(key) is not None), None)
