"""Which preset suits this machine."""

from __future__ import annotations

from collections.abc import Sequence

from kandiga_run.errors import RunError
from kandiga_run.forecast.forecast import Forecast


def best(forecasts: Sequence[Forecast]) -> Forecast:
    """Return the largest model that fits; where none does, the largest that is tight.

    RunError when nothing works here, with the reasons.
    """
    for verdict in ("fits", "tight"):
        found = [each for each in forecasts if each.verdict == verdict]
        if found:
            return max(found, key=lambda each: each.shape.packed_bytes)
    reasons = "; ".join(f"{each.shape.name}: {each.reasons[0]}" for each in forecasts)
    raise RunError(
        f"none of the known models works here ({reasons}). Name a smaller one with --model, or try "
        "--model demo"
    )
