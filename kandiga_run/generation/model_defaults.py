"""Sampling as the checkpoint recommends it, overruled by what the user asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kandiga_run.errors import RunError
from kandiga_run.generation.sampling import SamplingOptions

_FILTERS = ("top_k", "top_p", "min_p")


def sampling_for(
    generation_config: Mapping[str, Any], chosen: Mapping[str, Any]
) -> SamplingOptions:
    """Return the options of a run.

    `chosen` are the user's, None where not given. Without a temperature of the user's own the
    model's generation_config.json decides: its values when it says do_sample, else greedy. A user
    who asks for a filter (top_k, top_p, min_p) wants sampling, so greedy then becomes
    temperature 1.
    """
    given = {name: value for name, value in chosen.items() if value is not None}
    recommended = _recommended(generation_config)
    if any(name in given for name in _FILTERS):
        recommended.setdefault("temperature", 1.0)
    return SamplingOptions(**{**recommended, **given})


def _recommended(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ["repetition_penalty"]
    if config.get("do_sample"):
        names += ["temperature", *_FILTERS]
    values = {name: config[name] for name in names if config.get(name) is not None}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RunError(f"generation_config.json: {name} is {value!r}, wanted a number")
    if config.get("do_sample"):
        values.setdefault("temperature", 1.0)
    return values
