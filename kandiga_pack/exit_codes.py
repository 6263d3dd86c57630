"""What `kandiga-pack` tells the shell."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of `kandiga-pack`; the help of every command lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREADABLE = 3
    UNCHECKED = 4
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One line for the help text."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done, or everything checked is right",
    ExitCode.FAILED: "bad input, damaged container, or no room to write",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.UNREADABLE: "something named is missing or may not be read or written",
    ExitCode.UNCHECKED: "validate: nothing wrong, but something could not be checked here",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C or SIGTERM; convert and synth go on when run again",
}
