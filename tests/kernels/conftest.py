import shutil
from collections.abc import Iterator

import pytest

import cython_kernels
from cython_kernels import _kernels
from kernels.runner import Runner, build, host_isas


@pytest.fixture
def use_isa(isa: str) -> Iterator[None]:
    """Run the test with the kernels of the instruction set its parameter `isa` names."""
    before = cython_kernels.isa()
    _kernels._force_isa(isa)
    yield
    _kernels._force_isa(before)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Return the runner with the address and undefined-behaviour sanitizers."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs gcc or clang on PATH")
    folder = tmp_path_factory.mktemp("sanitized")
    # -O1: at -O2 the compiler takes twice as long over instrumented vector code.
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return Runner(build(folder, compiler, host_isas(), flags))
