"""One kernel call as data: the same case runs in this process and in the C runner elsewhere.

A Case holds the arrays of a call, what the kernel makes of them here (`run`), and what they should
become (`expected`, from cython_kernels.reference). The runner (runner.c) reads the same arrays from
a file and calls the same C function, so NEON under qemu and the sanitizers see what x86 sees.
"""

import ctypes
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]
PAGE = mmap.PAGESIZE
# One rounding of float32.
EPS32 = 2.0**-24


@dataclass(frozen=True)
class Expected:
    """What an output should be, and by how much each element may differ from it."""

    value: NDArray[np.generic]
    allowed: NDArray[np.float64] | float


@dataclass(frozen=True)
class Case:
    """One call of the runner's operation `op`; `arrays` holds inputs and outputs alike."""

    id: str
    op: str
    arrays: Arrays
    outputs: tuple[str, ...]
    run: Callable[[Arrays], None]
    expected: Callable[[], Mapping[str, Expected]]
    params: Mapping[str, float] = field(default_factory=dict)


def check(case: Case, results: Mapping[str, NDArray[np.generic]]) -> None:
    """Fail, showing the worst element, unless every output is within what is allowed."""
    for name, expected in case.expected().items():
        seen = results[name].astype(np.float64)
        want = np.asarray(expected.value, dtype=np.float64)
        assert seen.shape == want.shape, f"{case.id}: {name} is {seen.shape}, not {want.shape}"
        if seen.size == 0:
            continue
        allowed = np.broadcast_to(expected.allowed, want.shape)
        # Equal infinities differ by nan, which the comparison below would take for an error.
        with np.errstate(invalid="ignore"):
            error = np.where(seen == want, 0.0, np.abs(seen - want))
        excess = np.where(np.isnan(error), np.inf, error - allowed)
        worst = np.unravel_index(np.argmax(excess), want.shape)
        assert excess[worst] <= 0, (
            f"{case.id}: {name}{list(map(int, worst))} is {seen[worst]}, want {want[worst]}"
            f" within {allowed[worst]:.3g}; {(excess > 0).sum()} of {seen.size} are off"
        )


# Memory that shows a read or write past the end.

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Copy of the array in memory whose next page, right after the last element, is inaccessible.

    The start is aligned to the element only, as the size has it.
    """
    size = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, size + PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(PAGE), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


def misaligned(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Copy of the array that starts one element after a page."""
    memory = mmap.mmap(-1, array.nbytes + PAGE)
    copy = np.frombuffer(memory, array.dtype, array.size, array.itemsize).reshape(array.shape)
    copy[...] = array
    return copy


def run_here(
    case: Case, place: Callable[[NDArray[np.generic]], NDArray[np.generic]]
) -> Mapping[str, NDArray[np.generic]]:
    """Run the case in this process on arrays placed by `place`; check that inputs are unchanged."""
    arrays = {name: place(array) for name, array in case.arrays.items()}
    case.run(arrays)
    for name, array in case.arrays.items():
        if name not in case.outputs:
            assert array.tobytes() == arrays[name].tobytes(), f"{case.id}: wrote to {name}"
    return {name: arrays[name] for name in case.outputs}


# The runner's files; runner.c reads and writes the same.


def _name(text: str) -> bytes:
    encoded = text.encode()
    assert len(encoded) < 32, text
    return encoded.ljust(32, b"\0")


def write_cases(cases: Sequence[Case]) -> bytes:
    """The case file: everything little-endian, names in 32 bytes."""
    parts = [b"KCASES01", struct.pack("<Q", len(cases))]
    for case in cases:
        parts += [_name(case.op), struct.pack("<QQ", len(case.params), len(case.arrays))]
        for name, value in case.params.items():
            parts += [_name(name), struct.pack("<d", value)]
        for name, array in case.arrays.items():
            data = np.ascontiguousarray(array).tobytes()
            parts += [_name(name), struct.pack("<QQ", len(data), name in case.outputs), data]
    return b"".join(parts)


def read_results(cases: Iterable[Case], data: bytes) -> list[dict[str, NDArray[np.generic]]]:
    """The outputs of each case, which the runner wrote one after another."""
    results = []
    offset = 0
    for case in cases:
        outputs = {}
        for name, array in case.arrays.items():
            if name in case.outputs:
                flat = np.frombuffer(data, array.dtype, array.size, offset)
                outputs[name] = flat.reshape(array.shape)
                offset += array.nbytes
        results.append(outputs)
    assert offset == len(data), f"the runner wrote {len(data)} bytes, not {offset}"
    return results
