"""Sequences computed together give what each gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cython_kernels import set_rows_as_alone


@contextmanager
def rows_as_alone() -> Iterator[None]:
    """Keep to kernels that give each row the bits it has when it is computed alone."""
    set_rows_as_alone(True)
    try:
        yield
    finally:
        set_rows_as_alone(False)
