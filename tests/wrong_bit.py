"""A wrong bit in a file."""

from pathlib import Path


def flip_bit(path: Path, offset_bytes: int, mask: int = 1) -> None:
    """Flip the bits of `mask` in one byte; doing it twice undoes it."""
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        byte = file.read(1)[0]
        file.seek(offset_bytes)
        file.write(bytes([byte ^ mask]))
