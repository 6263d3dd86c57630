"""Exit codes of `kandiga-run`, part of its interface."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended; 130 is what shells use for a process ended by Ctrl-C."""

    OK = 0
    #: Bad input, a damaged container, a choice that cannot work.
    FAILED = 1
    #: The command line itself is wrong.
    USAGE = 2
    #: A file is missing or cannot be read.
    UNREADABLE = 3
    INTERRUPTED = 130


#: The last lines of every --help.
HELP = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 file missing or unreadable, 130 interrupted."
