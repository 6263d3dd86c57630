"""The same cases through the C runner: NEON under qemu, and everything here with the sanitizers."""

import os
import platform
import shutil
from pathlib import Path

import pytest

import cython_kernels
from kernels import quant_cases, turboquant_cases, vector_cases
from kernels.cases import Case, check
from kernels.runner import NEON_ISAS, Runner, build, host_isas

CROSS_COMPILER = "aarch64-linux-gnu-gcc"
QEMU = "qemu-aarch64-static"


def all_cases() -> list[Case]:
    return [
        *quant_cases.all_cases(),
        *turboquant_cases.all_cases(),
        *vector_cases.all_cases(),
    ]


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
def test_clang_gives_no_warning(tmp_path: Path) -> None:
    build(tmp_path, "clang", host_isas(), ["-O0"])


@pytest.mark.parametrize("isa", cython_kernels.available_isas())
def test_sanitized(isa: str, sanitized: Runner) -> None:
    cases = all_cases()
    for case, results in zip(cases, sanitized.run(cases, isa, num_threads=3), strict=True):
        check(case, results)


@pytest.fixture(scope="module")
def neon(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    missing = [tool for tool in (CROSS_COMPILER, QEMU) if shutil.which(tool) is None]
    if missing:
        message = f"not installed: {', '.join(missing)} (Debian: see .ci/run)"
        if os.environ.get("KANDIGA_REQUIRE_NEON") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("neon")
    program = build(folder, CROSS_COMPILER, NEON_ISAS, ["-static"])
    return Runner(program, (QEMU, "-cpu", "max"))


@pytest.mark.skipif(platform.machine() == "aarch64", reason="NEON runs in this process here")
@pytest.mark.parametrize("isa", NEON_ISAS)
def test_neon(isa: str, neon: Runner) -> None:
    cases = all_cases()
    for case, results in zip(cases, neon.run(cases, isa, num_threads=2), strict=True):
        check(case, results)
