"""Logits a caller keeps are the caller's; dropped ones are memory for the next token."""

import numpy as np
import pytest

from kandiga_run.native.logits import Logits


def test_dropped_logits_are_used_again() -> None:
    logits = Logits(7)
    address = logits.rows(1).ctypes.data
    assert logits.rows(1).ctypes.data == address


@pytest.mark.parametrize("keep", [lambda a: a, lambda a: a[0, 2:], lambda a: memoryview(a)])
def test_kept_logits_keep_their_values(keep: object) -> None:
    logits = Logits(7)
    first = logits.rows(1)
    first[:] = 1.0
    kept = keep(first)  # type: ignore[operator]
    del first
    logits.rows(1)[:] = 2.0
    np.testing.assert_array_equal(np.asarray(kept), 1.0)


def test_many_rows_are_always_new() -> None:
    logits = Logits(7)
    assert logits.rows(3).shape == (3, 7)
    assert not np.shares_memory(logits.rows(3), logits.rows(1))
