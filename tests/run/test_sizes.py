"""Numbers as people read them."""

import pytest

from kandiga_run.sizes import format_size, two_digits


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(999, "999 B"), (999.7, "1 kB"), (47_200, "47.2 kB"), (999_600_000, "1 GB"), (3e12, "3 TB")],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert format_size(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.614, "0.61"), (5.64, "5.6"), (9.96, "10"), (17.3, "17"), (157.2, "160"), (1984, "2000")],
)
def test_guesses_have_two_digits_and_no_exponent(number: float, text: str) -> None:
    assert two_digits(number) == text
