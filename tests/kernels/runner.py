"""Compile runner.c with the kernels' C sources, and run cases through it."""

import platform
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import cython_kernels
from kernels.cases import Case, read_results, write_cases

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "cython_kernels" / "csrc"
# As in cython_kernels/meson.build.
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *_AVX2]
ISA_FLAGS = {
    "scalar": [],
    "avx2": _AVX2,
    "avx2vnni": ["-mavxvnni", *_AVX2],
    "avx512": _AVX512,
    "avx512vnni": ["-mavx512vnni", "-mavx512vbmi", *_AVX512],
    "amx": ["-mamx-tile", "-mamx-bf16", "-mamx-int8", "-mavx512vbmi", *_AVX512],
    "neon": [],
    "neondot": ["-march=armv8.2-a+dotprod"],
}
X86_ISAS = ("scalar", "avx2", "avx2vnni", "avx512", "avx512vnni", "amx")
NEON_ISAS = ("scalar", "neon", "neondot")
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]


@dataclass(frozen=True)
class Runner:
    """A compiled runner and the command in front of it (qemu, or none)."""

    program: Path
    launcher: tuple[str, ...] = ()

    def run(
        self, cases: Sequence[Case], isa: str, num_threads: int
    ) -> list[dict[str, NDArray[np.generic]]]:
        """Outputs of each case; CalledProcessError shows what the program said."""
        case_file = self.program.with_suffix(f".{isa}.cases")
        result_file = self.program.with_suffix(f".{isa}.results")
        case_file.write_bytes(write_cases(cases))
        command = [*self.launcher, self.program, case_file, result_file, isa, str(num_threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.returncode}: {done.stderr[-4000:]}"
        return read_results(cases, result_file.read_bytes())


def host_isas() -> tuple[str, ...]:
    """Return what can be compiled for this machine; it need not be able to run it."""
    x86 = platform.machine() == "x86_64"
    return X86_ISAS if x86 else NEON_ISAS


def build(folder: Path, compiler: str, isas: Sequence[str], flags: Sequence[str]) -> Path:
    """Compile the runner with the kernels for `isas`; warnings are errors. Returns the program."""
    isa_of = {path: path.stem.rpartition("_")[2] for path in CSRC.glob("*_*.c")}
    isa_of = {path: isa for path, isa in isa_of.items() if isa in ISA_FLAGS}
    sources = [*HERE.glob("runner*.c"), *CSRC.glob("*.c")]
    commands = []
    objects = []
    for source in sorted(sources):
        isa = isa_of.get(source, "scalar")
        if isa not in isas:
            continue
        objects.append(folder / f"{source.stem}.o")
        includes = [f"-I{CSRC}", f"-I{HERE}"]
        defines = ["-DKANDIGA_HAVE_AMX"] if "amx" in isas else []
        options = ["-std=gnu11", "-O2", *WARNINGS, *flags, *ISA_FLAGS[isa], *defines, *includes]
        commands.append([compiler, *options, "-c", source, "-o", objects[-1]])
    with ThreadPoolExecutor(max_workers=cython_kernels.cpu_count()) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    program = folder / "runner"
    subprocess.run([compiler, *flags, *objects, "-o", program, "-lpthread", "-lm"], check=True)
    return program
