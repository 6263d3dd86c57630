"""Fixtures of the runtime's tests."""

import pytest

from packed import PackedModels


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedModels:
    """Return a maker of packed checkpoints that makes each one once."""
    return PackedModels(tmp_path_factory.mktemp("packed"))
