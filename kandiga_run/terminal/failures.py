"""The one place that turns an exception into the line a user reads and an exit code."""

from __future__ import annotations

import errno
import sys

from kandiga_run.errors import RunError
from kandiga_run.terminal.exit_codes import ExitCode

_UNREADABLE_ERRNOS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EHOSTUNREACH,
}


def describe(error: BaseException) -> tuple[str, ExitCode] | None:
    """Return the line to print and the exit code, or None for a bug that deserves its traceback."""
    match error:
        case RunError():
            return _one_line(str(error)), ExitCode.FAILED
        case KeyboardInterrupt():
            # A note says what is left, and what to do.
            notes = getattr(error, "__notes__", [])
            return "; ".join(["interrupted", *notes]), ExitCode.INTERRUPTED
        case OSError():
            return _describe_os_error(error)
        # As cython_kernels says them.
        case ImportError() if str(error).startswith(("KANDIGA_ISA", "cython_kernels:")):
            return str(error), ExitCode.FAILED
        case MemoryError():
            return "not enough memory; try a smaller --memory", ExitCode.FAILED
    return _describe_kexp_error(error)


def _describe_kexp_error(error: BaseException) -> tuple[str, ExitCode] | None:
    if "formats" not in sys.modules:
        return None  # it cannot have raised this
    from formats import UNREADABLE_CODES, KexpError

    if not isinstance(error, KexpError):
        return None
    is_unreadable = error.code in UNREADABLE_CODES
    return _one_line(str(error)), ExitCode.UNREADABLE if is_unreadable else ExitCode.FAILED


def _describe_os_error(error: OSError) -> tuple[str, ExitCode]:
    where = f"{error.filename}: " if error.filename else ""
    line = _one_line(f"{where}{error.strerror or error}")
    is_missing = isinstance(error, FileNotFoundError | PermissionError)
    is_unreadable = is_missing or error.errno in _UNREADABLE_ERRNOS
    return line, ExitCode.UNREADABLE if is_unreadable else ExitCode.FAILED


def _one_line(text: str) -> str:
    return " ".join(text.split())
