"""The matrix kernels of every instruction set this machine runs, against numpy float64."""

import pytest

import cython_kernels
from kernels.cases import Case, check, guarded, misaligned, run_here
from kernels.quant_cases import all_cases

CASES = all_cases()


@pytest.mark.parametrize("isa", cython_kernels.available_isas())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_quant(case: Case, isa: str, use_isa: None) -> None:
    check(case, run_here(case, guarded))
    check(case, run_here(case, misaligned))


def test_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES) > 200
