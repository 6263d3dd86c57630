"""The last lines of a terminal, rewritten in place; what leaves them at the top stays as text.

Only lines that changed are written again, in one write that terminals show at once: nothing
flickers, and what has scrolled away can be scrolled back to and copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# Synchronized output: terminals that do not know it ignore it.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_ERASE_BELOW = "\x1b[J"


class LiveRegion:
    """Lines of text, styled with escape sequences, none wider than the terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn: list[str] = []
        self._is_open = False
        #: Whether the cursor stands at the beginning of an empty line, not at the end of a text.
        self._is_fresh = True

    def draw(self, settled: Sequence[str], live: Sequence[str]) -> None:
        """Show `live` in the place of what was live, and above it `settled`, which stays."""
        lines = [*settled, *live]
        if lines != self._drawn or not self._is_open:
            self._write(lines)
        self._drawn = list(live)

    def close(self) -> None:
        """Let all that is shown stay, and go on below it."""
        if self._is_open:
            self._stream.write(("" if self._is_fresh else "\n") + _SHOW_CURSOR)
            self._stream.flush()
        self._drawn, self._is_open, self._is_fresh = [], False, True

    def _write(self, lines: Sequence[str]) -> None:
        """Write the lines from the first that changed on; leave the cursor at their end."""
        count, same = len(self._drawn), 0
        # The last line is always written, since the cursor belongs at its end.
        while same < min(len(lines) - 1, count) and lines[same] == self._drawn[same]:
            same += 1
        out = [_BEGIN, "" if self._is_open else _HIDE_CURSOR]
        if same < count:
            up = count - 1 - same
            out.append(f"\r\x1b[{up}A" if up else "\r")
            out.append(_ERASE_BELOW)
        elif not self._is_fresh:
            out.append("\n")
        out.append("\n".join(lines[same:]))
        out.append(_END)
        self._is_open, self._is_fresh = True, not lines
        self._stream.write("".join(out))
        self._stream.flush()
