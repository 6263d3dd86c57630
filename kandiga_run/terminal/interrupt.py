"""Ctrl-C as a wish instead of an exception, for as long as an answer is computed."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class InterruptFlag:
    """Within the block the first Ctrl-C sets `is_set`; a second one interrupts as usual.

    An exception in the middle of a layer would leave the model state half written; a flag is
    looked at between tokens and between prefill chunks.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._previous: Any = None

    def __enter__(self) -> InterruptFlag:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
