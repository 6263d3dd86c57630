"""Fixtures of what a user meets first: plan, setup, doctor, update, completion."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_stub import HubStub, serve_hub
from packed import Packed, PackedModels


@pytest.fixture(scope="session")
def tiny(packed: PackedModels) -> Packed:
    """A model whose weights are larger than its tokenizer."""
    sizes = {"hidden_size": 128, "moe_intermediate_size": 256}
    return packed("qwen3_moe", overrides=sizes)


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with serve_hub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any file."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
    return folder
