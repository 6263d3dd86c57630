"""Stop strings in streamed text, wherever the pieces happen to be cut."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string.

    The string that is complete first wins; of several complete at the same character, the
    longest. Text that may be the beginning of a stop string is held back until that is decided,
    so the result is the same for every way to cut the text into pieces.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Watch for `strings`, none of them empty."""
        self._strings = tuple(strings)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown, and whether a stop string ended it."""
        if not self._strings:
            return text, False
        text = self._held + text
        matches = [
            (start + len(string), start)
            for string in self._strings
            if (start := text.find(string)) >= 0
        ]
        if matches:
            self._held = ""
            return text[: min(matches)[1]], True
        shown = len(text) - self._possible_beginning(text)
        self._held = text[shown:]
        return text[:shown], False

    def finish(self) -> str:
        """Return what was held back, once no further text follows."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max(len(string) for string in self._strings) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0
