"""The user's messages: a line each, or several lines put together.

A line that ends in a backslash goes on in the next one. A line that begins with three quotation
marks goes on until three quotation marks end one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from kandiga_run.errors import RunError
from kandiga_run.terminal.standard_input import decode_input

QUOTES = '"""'


class LineReader(Protocol):
    """Where messages come from."""

    def read(self) -> str:
        """Return the next message.

        Raises EOFError at the end, KeyboardInterrupt when the line is dropped.
        """


def needs_more(text: str) -> bool:
    """Whether a message goes on in a further line."""
    if text.startswith(QUOTES):
        return not (len(text) >= 2 * len(QUOTES) and text.rstrip().endswith(QUOTES))
    return text.endswith("\\")


def message_of(text: str) -> str:
    """Return what a whole input says, without the marks that hold its lines together."""
    stripped = text.strip()
    if stripped.startswith(QUOTES):
        return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\r\n")
    return text.replace("\\\r\n", "\n").replace("\\\n", "\n").strip()


class PlainReader:
    """Reads standard input, in which nobody edits."""

    def __init__(self, read_line: Callable[[], bytes] | None = None) -> None:
        """Read lines as bytes, the line break included; b"" is the end."""
        self._read_line = read_line or sys.stdin.buffer.readline

    def read(self) -> str:
        """Return the next message. Raises RunError for input that is not text or ends in one."""
        text = self._line()
        while needs_more(text):
            try:
                text += "\n" + self._line()
            except EOFError:
                if text.startswith(QUOTES):
                    raise RunError(f"the input ends within a {QUOTES} message") from None
                break
        return message_of(text.removesuffix("\\"))

    def _line(self) -> str:
        line = self._read_line()
        if not line:
            raise EOFError
        return decode_input(line).rstrip("\r\n")
