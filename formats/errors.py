"""The one family of errors that this package raises about containers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePath

# Codes that mean "could not be read at all" rather than "read, and wrong". Commands give these an
# exit status of their own.
UNREADABLE_CODES = frozenset({"E_IO", "E_FILE_MISSING"})


class KexpError(Exception):
    """Something about a container is wrong; `code` is one of those listed in specs/kexp-v1.md.

    Args:
        code: stable identifier, for example "E_BLOCK_CRC".
        message: value seen, value wanted, and what to do if that is known. One line.
        file: the file at fault; only its last component is printed.
        offset_bytes: where in that file.
        layer, expert: which expert, when the fault lies in one.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        file: str | PurePath | None = None,
        offset_bytes: int | None = None,
        layer: int | None = None,
        expert: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = None if file is None else PurePath(file).name
        self.offset_bytes = offset_bytes
        self.layer = layer
        self.expert = expert

    def __str__(self) -> str:
        where = []
        if self.layer is not None:
            where.append(f"layer {self.layer}")
        if self.expert is not None:
            where.append(f"expert {self.expert}")
        if self.offset_bytes is not None:
            where.append(f"at {self.offset_bytes:#x}")
        pieces = [piece for piece in (self.file, " ".join(where), self.message) if piece]
        return one_line(f"{': '.join(pieces)} ({self.code})")


def one_line(text: str) -> str:
    """Return the text with what is not printable escaped.

    Names of files and tensors are a stranger's: a message must not move the cursor, or go on in the
    next line of a log.
    """
    if text.isprintable():
        return text
    escaped = (char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return "".join(escaped)


@contextlib.contextmanager
def in_file(file: str | PurePath | None) -> Iterator[None]:
    """Name `file` in any KexpError that passes through without naming one."""
    try:
        yield
    except KexpError as error:
        if error.file is None and file is not None:
            error.file = PurePath(file).name
        raise


@contextlib.contextmanager
def os_errors(path: Path, what: str) -> Iterator[None]:
    """Turn an OSError into KexpError E_FILE_MISSING or E_IO.

    what: past participle for the message, "model.kexp: cannot be written: No space left on device".
    """
    try:
        yield
    except FileNotFoundError as error:
        raise KexpError("E_FILE_MISSING", f"no such file in {path.parent}", file=path) from error
    except OSError as error:
        raise KexpError("E_IO", f"cannot be {what}: {error.strerror}", file=path) from error


def short(digest: bytes | str) -> str:
    """Return as much of a digest, raw or in hexadecimal, as tells two apart in a message."""
    text = digest if isinstance(digest, str) else digest.hex()
    return f"{text[:16]}..."
