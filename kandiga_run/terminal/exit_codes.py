"""What `kandiga-run` tells the shell.

`kandiga-pack` has codes of its own with the same numbers: sharing them would make one of the two
commands import the other, or `formats` know about commands.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of `kandiga-run`; the help of every command lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREADABLE = 3
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One line for the help text."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "bad input, damaged container, or a choice that cannot work",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.UNREADABLE: "something named is missing or may not be read",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
}

#: The last lines of every --help; click keeps the lines of blocks marked `\b`.
HELP = "\b\nExit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in ExitCode)
