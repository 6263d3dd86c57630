"""Servers that several files of this folder ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from packed import Packed, PackedModels
from server.server_process import START_SECONDS, ServerProcess

#: Tokens of the tiny models' context; room for templates and answers.
CONTEXT_TOKENS = 2048


@pytest.fixture(scope="session")
def hybrid(packed: PackedModels) -> Packed:
    """Return a tiny model with attention and recurrent layers, as the models we are made for."""
    overrides = {"max_position_embeddings": CONTEXT_TOKENS}
    return packed("qwen3_5_moe", overrides=overrides)


@pytest.fixture(scope="session")
def model(hybrid: Packed) -> Path:
    """Return the container being served."""
    return hybrid.container


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[ServerProcess]:
    """Return a server without a key, with all its defaults."""
    with ServerProcess(model) as running:
        yield running


@pytest.fixture(scope="session")
def openai_client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """Return OpenAI's own client for it; it tries nothing twice, so that refusals are seen."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=START_SECONDS
    ) as client:
        yield client


@pytest.fixture(scope="session")
def anthropic_client(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    """Return Anthropic's own client for it."""
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, timeout=START_SECONDS
    ) as client:
        yield client
