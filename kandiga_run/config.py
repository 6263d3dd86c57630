"""Reading values from a model's config.json, strictly.

A value that an engine does not implement is an error that names it. Ignoring one would compute a
different model than the one published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kandiga_run.errors import RunError

#: Spellings of the number of experts a token uses, by family.
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)


class Config:
    """One level of config.json (the whole, or its text_config) with typed, checked reads."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self._values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def section(self, key: str) -> Config:
        """Return a nested object, empty when it is absent or null."""
        values = self._values.get(key)
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise self.error(key, "an object")
        return Config(values, f"{self.where}: {key}")

    def positive(self, key: str, default: int | None = None) -> int:
        """Return a whole number above zero."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.error(key, "a whole number above zero")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; JSON as Python reads it has NaN and Infinity too."""
        value = self._get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.error(key, "a number")
        if not math.isfinite(value):
            raise self.error(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def numbers(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers, empty when it is absent."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            raise self.error(key, "a list of whole numbers")
        return tuple(value)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def get(self, key: str) -> Any:
        """Return a value of any type, None when absent."""
        return self._values.get(key)

    def require(self, key: str, *implemented: Any) -> None:
        """Refuse a value other than the implemented ones; an absent key is accepted."""
        value = self._values.get(key)
        if value is not None and value not in implemented:
            wanted = " or ".join(repr(item) for item in implemented) or "no value"
            raise RunError(
                f"{self.where}: {key} is {value!r}, which the native engine does not implement "
                f"(it implements {wanted})"
            )

    def error(self, key: str, wanted: str) -> RunError:
        """Return the error for a value that makes no sense."""
        seen = repr(self._values[key]) if key in self._values else "missing"
        return RunError(f"{self.where}: {key} is {seen}, wanted {wanted}")

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        return default if value is None else value
