"""Buffers that may lie over each other, and those that may not."""

import numpy as np
import pytest

from kandiga_run.native.scratch import Scratch


def test_groups_share_memory_and_nothing_else_does() -> None:
    scratch = Scratch(10)
    scratch.declare("hidden", 7)
    scratch.declare("attention/queries", 100)
    scratch.declare("attention/keys", 9)
    scratch.declare("experts/results", 33)
    scratch.declare("experts/results", 3)  # the widest declaration counts
    scratch.declare("hidden", 8)
    buffers = {
        name: scratch.rows(name, 10, width)
        for name, width in {
            "hidden": 8,
            "attention/queries": 100,
            "attention/keys": 9,
            "experts/results": 33,
        }.items()
    }
    for number, name in enumerate(("hidden", "attention/queries", "attention/keys")):
        buffers[name].fill(number)
    for number, name in enumerate(("hidden", "attention/queries", "attention/keys")):
        assert (buffers[name] == number).all()
    buffers["experts/results"].fill(5)
    assert (buffers["hidden"] == 0).all()
    assert all(buffer.ctypes.data % 64 == 0 for buffer in buffers.values())
    largest_group = 10 * 4 * (100 + 9)
    assert 10 * 4 * 8 + largest_group <= scratch.nbytes <= 10 * 4 * 8 + largest_group + 3 * 64


def test_the_same_name_is_the_same_memory() -> None:
    scratch = Scratch(4)
    scratch.declare("order", 6, np.int32)
    whole = scratch.rows("order", 4, 2, 3, dtype=np.int32)
    whole[:] = np.arange(24).reshape(4, 2, 3)
    np.testing.assert_array_equal(
        scratch.rows("order", 2, 6, dtype=np.int32), whole[:2].reshape(2, 6)
    )
    assert scratch.rows("order", 2, 6, dtype=np.int32) is scratch.rows(
        "order", 2, 6, dtype=np.int32
    )


def test_more_than_declared() -> None:
    scratch = Scratch(4)
    scratch.declare("hidden", 16)
    with pytest.raises(ValueError, match="'hidden': 320 bytes wanted of 256"):
        scratch.rows("hidden", 5, 16)
    scratch.rows("hidden", 1, 16)
    with pytest.raises(RuntimeError, match="'late' declared after"):
        scratch.declare("late", 1)
