"""Sizes as people write them: 2GB is 2,000,000,000 bytes, 2GiB is 2,147,483,648."""

from __future__ import annotations

import re

from kandiga_run.errors import RunError

_UNITS = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def parse_size(text: str) -> int:
    """Return a size in bytes. Raises RunError without a unit: 2 could mean anything."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise RunError(
            f"size {text!r}: wanted a number and a unit, like 2GB (1000-based), 2GiB (1024-based) "
            "or 512MB"
        )
    return round(float(match[1]) * unit)


def format_size(num_bytes: float) -> str:
    """Return a size in the largest 1000-based unit that leaves a digit before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 999.5:  # 999.7 would be rounded to 1e+03
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def two_digits(number: float) -> str:
    """Return a number rounded to two digits, as guesses are told: 0.61, 5.6, 17, 220."""
    return f"{float(f'{number:.2g}'):g}"
