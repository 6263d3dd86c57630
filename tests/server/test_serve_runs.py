"""`kandiga-run serve` with the mlx engine, and with prompts kept from run to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from server.server_process import START_SECONDS, ServerProcess

#: Longer than a chunk of 512 tokens: of those, whole ones are kept.
LONG = "The router selects a few experts. " * 20


def client_of(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=START_SECONDS
    )


def answer(client: openai.OpenAI, model: Path, **options: Any) -> Any:
    return client.chat.completions.create(
        model=model.name, messages=[{"role": "user", "content": LONG}], max_tokens=8, **options
    )


def test_prompts_are_kept_from_run_to_run(model: Path, tmp_path: Path) -> None:
    options = ("--prefix-cache-dir", str(tmp_path / "kept"))
    answers = []
    for _ in range(2):
        with ServerProcess(model, *options) as server, client_of(server) as client:
            answers.append(answer(client, model))
    first, second = answers
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= 512
    assert second.usage.prompt_tokens == first.usage.prompt_tokens
    assert second.choices[0].message.content == first.choices[0].message.content


@pytest.mark.slow
def test_with_the_mlx_engine(model: Path, openai_client: openai.OpenAI) -> None:
    """Whole and streamed, with a kept prompt, and within a schema."""
    native = answer(openai_client, model).usage.prompt_tokens
    with ServerProcess(model, "--engine", "mlx") as mlx, client_of(mlx) as client:
        with mlx.client() as plain:
            assert plain.get("/status").json()["engine"]["name"] == "mlx"
        whole = answer(client, model)
        assert whole.usage.prompt_tokens == native
        chunks = list(answer(client, model, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= 512
        schema = {"name": "verdict", "schema": {"type": "string", "enum": ["yes", "no"]}}
        format_ = {"type": "json_schema", "json_schema": schema}
        held = answer(client, model, response_format=format_)
        assert held.choices[0].message.content.strip() in ('"yes"', '"no"')
