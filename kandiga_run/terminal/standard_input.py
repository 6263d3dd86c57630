"""Text that is piped in."""

from __future__ import annotations

from kandiga_run.errors import RunError


def decode_input(data: bytes) -> str:
    """Return piped bytes as text. Raises RunError when they are not UTF-8, whatever the locale."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RunError(
            f"standard input is not UTF-8 text: byte {data[error.start]:#04x} at offset "
            f"{error.start}"
        ) from error
