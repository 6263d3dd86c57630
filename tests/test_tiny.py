"""The tree is alive: packages import and the kernels answer. The whole file runs in seconds."""

import cython_kernels


def test_kernels_see_the_processors() -> None:
    assert cython_kernels.cpu_count() >= 1
