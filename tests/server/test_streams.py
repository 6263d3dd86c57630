"""Streams and queue: keep-alive comments, clients that leave, failures on the way, 429."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx2
import openai
import pytest

from kandiga_run.tokenizer.prompts import Prompts
from server.scripted import ScriptedServer, make_prompts

SCRIPTS = {"long": "word " * 1500, "short": "Done."}
LONG = [{"role": "user", "content": "Something long."}]
SHORT = [{"role": "user", "content": "Something short."}]

#: What a client sees cancelled within: a few steps, on a machine that does other things too.
CANCEL_SECONDS = 3.0
STEP_SECONDS = 0.02
#: of a stream that a client waits for before it leaves; in each API text has come by then
NUM_EVENTS = 8


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return make_prompts(tmp_path_factory.mktemp("scripted"))


@pytest.fixture
def slow(prompts: Prompts) -> Iterator[ScriptedServer]:
    """Return a server with one place and one to wait, whose steps take a while."""
    with ScriptedServer(
        prompts, SCRIPTS, max_running=1, max_waiting=1, keep_alive_seconds=0.05
    ) as server:
        server.engine.step_seconds = STEP_SECONDS
        yield server


def chat(messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"messages": messages, **fields}


def events(response: httpx2.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(LONG, stream=True)),
        (
            "/v1/completions",
            {"prompt": "<|im_start|>user\nlong<|im_end|>\n<|im_start|>assistant\n"},
        ),
        ("/v1/responses", {"input": "Something long."}),
        ("/v1/messages", chat(LONG, model="scripted", max_tokens=4000)),
    ],
)
def test_a_client_that_leaves_a_stream_cancels_its_answer(
    slow: ScriptedServer, path: str, body: dict[str, Any]
) -> None:
    body = {"max_tokens": 4000, **body, "stream": True}
    with slow.client() as client, client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        begun = list(itertools.islice(events(response), NUM_EVENTS))
        assert len(begun) == NUM_EVENTS
    slow.wait_for("cancelled", 1, CANCEL_SECONDS)
    assert slow.scheduler.status().running == 0
    computed = slow.engine.states[-1].position
    time.sleep(10 * STEP_SECONDS)
    assert slow.engine.states[-1].position == computed


def test_a_client_that_leaves_without_a_stream_cancels_too(slow: ScriptedServer) -> None:
    address = urlsplit(slow.url)
    body = json.dumps(chat(LONG)).encode()
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        slow.wait_for("running", 1)
    slow.wait_for("cancelled", 1, CANCEL_SECONDS)


def test_a_client_that_leaves_the_queue_makes_room(slow: ScriptedServer) -> None:
    body = chat(LONG, stream=True)
    with slow.client() as client, client.stream("POST", "/v1/chat/completions", json=body):
        slow.wait_for("running", 1)
        with client.stream("POST", "/v1/chat/completions", json=body):
            slow.wait_for("waiting", 1)
        slow.wait_for("waiting", 0, CANCEL_SECONDS)
    slow.wait_for("cancelled", 2, CANCEL_SECONDS)


def test_a_silent_connection_is_kept_open_by_comments(slow: ScriptedServer) -> None:
    slow.engine.step_seconds = 0.3
    body = chat([{"role": "user", "content": "read this first " * 40 + "short"}], stream=True)
    with slow.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as sent:
        lines = list(sent.iter_lines())
    first_text = next(i for i, line in enumerate(lines) if '"content":"D' in line)
    assert lines[:first_text].count(": keep-alive") >= 3
    assert lines[-2:] == ["data: [DONE]", ""]


def test_clients_do_not_see_the_comments(slow: ScriptedServer) -> None:
    slow.engine.step_seconds = 0.1
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="x", max_retries=0) as client:
        chunks = client.chat.completions.create(model="scripted", messages=SHORT, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Done."
    with (
        anthropic.Anthropic(base_url=slow.url, api_key="x", max_retries=0) as claude,
        claude.messages.stream(model="scripted", messages=SHORT, max_tokens=50) as stream,
    ):
        assert stream.get_final_text() == "Done."


def test_a_full_queue_says_when_to_come_back(slow: ScriptedServer) -> None:
    long = chat(LONG, stream=True)
    with (
        openai.OpenAI(base_url=f"{slow.url}/v1", api_key="x", max_retries=0) as official,
        slow.client() as client,
        client.stream("POST", "/v1/chat/completions", json=long),
    ):
        slow.wait_for("running", 1)
        with pytest.raises(openai.RateLimitError):  # n answers are n places, or none
            official.chat.completions.create(model="scripted", messages=SHORT, n=2)
        slow.wait_for("waiting", 0, CANCEL_SECONDS)
        with client.stream("POST", "/v1/chat/completions", json=long):
            slow.wait_for("waiting", 1)
            for path in ("/v1/chat/completions", "/v1/messages"):
                refused = client.post(path, json=chat(SHORT, model="scripted", max_tokens=5))
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["type"] == "rate_limit_error"


def test_an_answer_that_cannot_be_computed(slow: ScriptedServer) -> None:
    """A failure before the first event is a status, one on the way the last event."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", "model-00001.kexp")

    slow.engine.forward = fail  # type: ignore[method-assign]
    with slow.client() as client:
        refused = client.post("/v1/chat/completions", json=chat(SHORT))
        assert refused.status_code == 500
        assert refused.json()["error"]["message"] == "model-00001.kexp: Input/output error"
        sent = client.post("/v1/chat/completions", json=chat(SHORT, stream=True))
        assert list(events(sent))[-1]["error"]["type"] == "server_error"
        sent = client.post(
            "/v1/messages", json=chat(SHORT, model="scripted", max_tokens=5, stream=True)
        )
        assert "event: error" in sent.text
        assert list(events(sent))[-1]["error"]["type"] == "api_error"
        sent = client.post("/v1/responses", json={"input": "short", "stream": True})
        assert list(events(sent))[-1]["type"] == "response.failed"


def test_shutting_down_refuses_and_ends_answers(slow: ScriptedServer) -> None:
    with slow.client() as client:
        body = chat(LONG, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            slow.wait_for("running", 1)
            slow.scheduler.close()
            last = list(events(response))[-1]
            assert "shutting down" in last["error"]["message"]
        refused = client.post("/v1/chat/completions", json=chat(SHORT))
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
