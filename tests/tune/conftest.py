"""Fixtures of the tests of tuning."""

from pathlib import Path

import pytest

from packed import PackedModels


@pytest.fixture(scope="session")
def model(packed: PackedModels) -> Path:
    """Return a tiny container."""
    return packed("qwen3_5_moe").container


@pytest.fixture
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the user's configuration."""
    home = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home
