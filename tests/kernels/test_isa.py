"""Which instruction set runs: the best one, or the one KANDIGA_ISA names."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import cython_kernels
from cython_kernels import _kernels

# Flags of /proc/cpuinfo that an instruction set's code needs.
AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
X86_FLAGS = {
    "avx2": AVX2,
    "avx2vnni": AVX2 | {"avx_vnni"},
    "avx512": AVX512,
    "avx512vnni": AVX512 | {"avx512_vnni", "avx512vbmi"},
    "amx": AVX512 | {"avx512_vnni", "avx512vbmi", "amx_tile", "amx_bf16", "amx_int8"},
}


def isa_of_new_process(kandiga_isa: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "KANDIGA_ISA"}
    if kandiga_isa is not None:
        environment["KANDIGA_ISA"] = kandiga_isa
    program = "import cython_kernels; print(cython_kernels.isa())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_best_one_is_the_default() -> None:
    done = isa_of_new_process(None)
    assert done.stdout.strip() == cython_kernels.available_isas()[-1], done.stderr


@pytest.mark.parametrize("isa", cython_kernels.available_isas())
def test_forced(isa: str) -> None:
    assert isa_of_new_process(isa).stdout.strip() == isa


def test_unknown_is_an_error() -> None:
    done = isa_of_new_process("sse9")
    assert done.returncode == 1
    last_line = done.stderr.strip().splitlines()[-1]
    available = ", ".join(cython_kernels.available_isas())
    assert last_line == (
        f"ImportError: KANDIGA_ISA: 'sse9' cannot run here; available: {available}"
    )


def test_unavailable_is_an_error() -> None:
    other = "avx2" if "neon" in cython_kernels.available_isas() else "neon"
    done = isa_of_new_process(other)
    assert done.returncode == 1
    assert f"KANDIGA_ISA: '{other}' cannot run here" in done.stderr


def test_scalar_is_always_available() -> None:
    assert cython_kernels.available_isas()[0] == "scalar"


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="compares with the flags of /proc/cpuinfo on x86-64",
)
def test_available_agrees_with_the_kernel() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    wanted = {isa for isa, needed in X86_FLAGS.items() if needed <= flags}
    assert set(cython_kernels.available_isas()) == {"scalar", *wanted}


def test_force_rejects_unknown() -> None:
    before = cython_kernels.isa()
    with pytest.raises(ValueError, match="'sse9' cannot run here; available: scalar"):
        _kernels._force_isa("sse9")
    assert cython_kernels.isa() == before
