from collections.abc import Iterator

import pytest

import cython_kernels
from cython_kernels import _kernels


@pytest.fixture
def use_isa(isa: str) -> Iterator[None]:
    """Run the test with the kernels of the instruction set its parameter `isa` names."""
    before = cython_kernels.isa()
    _kernels._force_isa(isa)
    yield
    _kernels._force_isa(before)
