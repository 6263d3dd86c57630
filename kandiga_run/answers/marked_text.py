"""Finding markers such as `</think>` in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


def first_marker(text: str, markers: Sequence[str]) -> tuple[int, str] | None:
    """Return where the first of the markers stands and which one it is; the longest if several."""
    found = [(text.find(marker), -len(marker), marker) for marker in markers if marker in text]
    if not found:
        return None
    index, _, marker = min(found)
    return index, marker


def held_length(text: str, markers: Sequence[str]) -> int:
    """Return how many last characters may be the beginning of a marker still to be completed."""
    longest = max((len(marker) for marker in markers), default=0)
    for length in range(min(len(text), longest - 1), 0, -1):
        end = text[-length:]
        if any(marker.startswith(end) for marker in markers):
            return length
    return 0
