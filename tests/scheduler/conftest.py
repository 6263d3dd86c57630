"""Tiny models of the native families, packed once for the whole room."""

import pytest

from packed import PackedModels


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedModels:
    return PackedModels(tmp_path_factory.mktemp("models"))
