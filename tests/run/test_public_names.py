"""`import kandiga_run` gives the public names, and waits for nothing before one is used."""

import subprocess
import sys

import pytest

import kandiga_run


@pytest.mark.parametrize("name", kandiga_run.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(kandiga_run, name).__name__ == name
    assert name in dir(kandiga_run)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'generates'"):
        kandiga_run.generates  # noqa: B018


def test_importing_loads_nothing_large() -> None:
    code = "import kandiga_run, sys; print('numpy' in sys.modules, 'tokenizers' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "False"]
