"""What is read from the command line and the model's own settings."""

import pytest

from kandiga_run.errors import RunError
from kandiga_run.generation.model_defaults import sampling_for
from kandiga_run.generation.sampling import SamplingOptions
from kandiga_run.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GB", 2_000_000_000),
        ("2GiB", 2_147_483_648),
        ("512MB", 512_000_000),
        ("512 mib", 536_870_912),
        ("1.5gb", 1_500_000_000),
        ("300kB", 300_000),
        ("123B", 123),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "2", "2G", "GB", "-2GB", "2GBs", "1e3MB", "2,5GB", "nanGB"])
def test_sizes_that_could_mean_anything(text: str) -> None:
    with pytest.raises(RunError, match=r"wanted a number and a unit, like 2GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (17_500_000, "17.5 MB"), (2e9, "2 GB")],
)
def test_sizes_for_people(num_bytes: float, text: str) -> None:
    assert format_size(num_bytes) == text


RECOMMENDED = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


@pytest.mark.parametrize(
    ("generation_config", "chosen", "wanted"),
    [
        ({}, {}, SamplingOptions()),
        (RECOMMENDED, {}, SamplingOptions(temperature=0.6, top_k=20, top_p=0.95)),
        ({**RECOMMENDED, "do_sample": False}, {}, SamplingOptions()),
        ({"temperature": 0.6}, {}, SamplingOptions()),
        ({"do_sample": True}, {}, SamplingOptions(temperature=1.0)),
        ({"repetition_penalty": 1.1}, {}, SamplingOptions(repetition_penalty=1.1)),
        (RECOMMENDED, {"temperature": 0}, SamplingOptions(0, top_k=20, top_p=0.95)),
        (RECOMMENDED, {"top_k": 0}, SamplingOptions(0.6, top_k=0, top_p=0.95)),
        ({}, {"top_p": 0.9}, SamplingOptions(1.0, top_p=0.9)),
        ({}, {"top_p": 0.9, "temperature": 0.5}, SamplingOptions(0.5, top_p=0.9)),
        ({}, {"seed": 3}, SamplingOptions(seed=3)),
        ({**RECOMMENDED, "top_p": None}, {}, SamplingOptions(temperature=0.6, top_k=20)),
    ],
)
def test_sampling_defaults(
    generation_config: dict[str, object], chosen: dict[str, object], wanted: SamplingOptions
) -> None:
    absent = {"temperature": None, "top_k": None, "top_p": None, "min_p": None, "seed": None}
    assert sampling_for(generation_config, {**absent, **chosen}) == wanted


@pytest.mark.parametrize("value", ["0.6", True, [0.6]])
def test_nonsense_in_generation_config(value: object) -> None:
    config = {"do_sample": True, "temperature": value}
    with pytest.raises(
        RunError, match=r"generation_config\.json: temperature is .*wanted a number"
    ):
        sampling_for(config, {})
