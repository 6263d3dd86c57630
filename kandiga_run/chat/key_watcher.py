"""Keys pressed while an answer is written, without waiting for them."""

from __future__ import annotations

import os
import select
import sys
import termios
from types import TracebackType
from typing import Any

TOGGLE = "\x0f"  # Ctrl-O


class KeyWatcher:
    """Within the block keys are not echoed, and `poll` returns those pressed since the last call.

    Ctrl-C remains a signal.
    """

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno()
        self._before: list[Any] | None = None

    def __enter__(self) -> KeyWatcher:
        try:
            self._before = termios.tcgetattr(self._descriptor)
        except termios.error:  # not a terminal: no keys
            return self
        modes = termios.tcgetattr(self._descriptor)
        # IEXTEN: on macOS Ctrl-O would otherwise discard output.
        modes[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        # Ctrl-C would otherwise throw away what is written and not yet shown.
        modes[3] |= termios.NOFLSH
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 0, 0
        termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)
            self._before = None

    def poll(self) -> str:
        """Return what was typed."""
        if self._before is None:
            return ""
        ready, _, _ = select.select([self._descriptor], [], [], 0)
        return os.read(self._descriptor, 4096).decode(errors="ignore") if ready else ""
