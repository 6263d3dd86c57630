"""Fixtures of the format's tests."""

from pathlib import Path

import pytest

from containers import write_set


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small sound set, which nobody may change."""
    dest = tmp_path_factory.mktemp("pristine") / "model"
    write_set(dest)
    return dest


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """Return a copy of the set that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in pristine.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
