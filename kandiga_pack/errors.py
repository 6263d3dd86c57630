"""The packer's own errors, and the one place that turns any exception into an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import click

from formats import UNREADABLE_CODES, KexpError
from formats.errors import one_line
from kandiga_pack.exit_codes import ExitCode


class PackError(Exception):
    """The input or the container is not what it should be. `str()` is the line the user reads:
    what, where, the value seen, the value wanted, the next thing to do."""

    exit_code = ExitCode.FAILED

    def __str__(self) -> str:
        return one_line(super().__str__())


class UnreadableError(PackError):
    """Something the user named does not exist or may not be read or written."""

    exit_code = ExitCode.UNREADABLE


class UsageError(PackError):
    """The options given do not go together."""

    exit_code = ExitCode.USAGE


class AlreadyQuantizedError(PackError):
    """The checkpoint holds quantized weights, and was to be quantized."""


@contextmanager
def what_stays(note: str) -> Iterator[None]:
    """Have the line of an interruption say what is left, and what to do."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(note)
        raise


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised like Ctrl-C so that the same clean-up runs."""


_UNREADABLE_ERRNOS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EHOSTUNREACH,
}
_FREE_SPACE = "free some space and run the command again"
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def describe(error: BaseException) -> tuple[str, ExitCode]:
    """Return the line to print and the exit code.

    Notes on the error (BaseException.add_note), such as what is kept, end the line.
    """
    line, code = _describe(error)
    return "; ".join([line, *getattr(error, "__notes__", [])]), code


def _describe(error: BaseException) -> tuple[str, ExitCode]:
    match error:
        case PackError():
            return str(error), error.exit_code
        case KexpError(__cause__=OSError() as cause) if cause.errno in _FULL_ERRNOS:
            return f"{error}; {_FREE_SPACE}", ExitCode.FAILED
        case KexpError():
            unreadable = error.code in UNREADABLE_CODES
            return str(error), ExitCode.UNREADABLE if unreadable else ExitCode.FAILED
        case KeyboardInterrupt():
            left = "" if hasattr(error, "__notes__") else "; nothing was left behind"
            return f"interrupted{left}", ExitCode.INTERRUPTED
        case click.ClickException():
            return _describe_usage_error(error), ExitCode.USAGE
        case OSError():
            return _describe_os_error(error)
        case MemoryError():
            return "not enough memory", ExitCode.FAILED
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what} (--debug shows where; please report it)", ExitCode.FAILED


def _describe_usage_error(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "kandiga-pack"
    return f"{error.format_message()} (see {command} --help)"


def _describe_os_error(error: OSError) -> tuple[str, ExitCode]:
    where = f"{error.filename}: " if error.filename else ""
    what = error.strerror or str(error)
    if error.errno in _FULL_ERRNOS:
        return f"{where}{what}; {_FREE_SPACE}", ExitCode.FAILED
    if error.errno in _UNREADABLE_ERRNOS:
        return f"{where}{what}", ExitCode.UNREADABLE
    return f"{where}{what}", ExitCode.FAILED
