"""Many tokens at a time, on every instruction set this machine runs, against numpy float64."""

from collections.abc import Iterator

import pytest

import cython_kernels
from kernels.cases import Case, check, guarded, misaligned, run_here
from kernels.gemm_cases import all_cases, expert_cases, long_cases

CASES = all_cases()


@pytest.mark.parametrize("isa", cython_kernels.available_isas()[1:])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gemm(case: Case, isa: str, use_isa: None) -> None:
    check(case, run_here(case, guarded))
    check(case, run_here(case, misaligned))


@pytest.fixture
def any_threads() -> Iterator[None]:
    before = cython_kernels.num_threads()
    yield
    cython_kernels.set_num_threads(before)


@pytest.mark.parametrize("case", [*expert_cases(), *long_cases()], ids=lambda case: case.id)
def test_threads_change_no_bit(case: Case, any_threads: None) -> None:
    results = []
    for num_threads in (1, 2, 5):
        cython_kernels.set_num_threads(num_threads)
        results.append({k: v.tobytes() for k, v in run_here(case, guarded).items()})
    assert results[0] == results[1] == results[2]


def test_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES) > 80
