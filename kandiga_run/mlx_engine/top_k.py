"""Changing how many experts a token uses.

The model class reads the number from its config, so changing the config reaches whatever attribute
the MoE block ends up with.
"""

from __future__ import annotations

from typing import Any

from kandiga_run.config import TOP_K_KEYS
from kandiga_run.errors import RunError


def top_k_override(config: dict[str, Any], top_k: int) -> dict[str, Any]:
    """Return the config entries that make the model class use `top_k` experts a token.

    RunError when the config has none of the known keys.
    """
    text_config = config.get("text_config")
    if isinstance(text_config, dict) and (changed := _replaced(text_config, top_k)):
        return {"text_config": {**text_config, **changed}}
    if changed := _replaced(config, top_k):
        return changed
    raise RunError(
        f"{config.get('model_type')}: the number of experts a token uses cannot be changed: "
        f"its config has none of {', '.join(TOP_K_KEYS)}; run it without --experts or --fast"
    )


def _replaced(config: dict[str, Any], top_k: int) -> dict[str, Any]:
    # hunyuan may list one number per layer.
    return {
        key: [top_k] * len(config[key]) if isinstance(config[key], list) else top_k
        for key in TOP_K_KEYS
        if config.get(key)
    }
