"""Keys, names, origins, limits; what is open and what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kandiga_run.server.access import is_loopback
from kandiga_run.tokenizer.prompts import Prompts
from server.scripted import ScriptedServer, make_prompts
from server.server_process import START_SECONDS, ServerProcess

KEY = "open sesame"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
PROTECTED = ("/v1/models", "/status", "/metrics")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return make_prompts(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def locked(prompts: Prompts) -> Iterator[ScriptedServer]:
    settings = {"api_key": KEY, "cors_origins": ("https://example.com",), "max_body_bytes": 2000}
    with ScriptedServer(prompts, {"Hello": "Hi."}, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def unlocked(prompts: Prompts) -> Iterator[ScriptedServer]:
    with ScriptedServer(prompts, {"Hello": "Hi."}, aliases=("gpt-4o",)) as server:
        yield server


class TestKey:
    @pytest.mark.parametrize("path", PROTECTED)
    def test_it_is_asked_for(self, locked: ScriptedServer, path: str) -> None:
        with locked.client() as client:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": KEY + "x"}):
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
            assert client.get(path, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
            assert client.get(path, headers={"x-api-key": KEY}).status_code == 200

    def test_refusals_have_each_apis_shape(self, locked: ScriptedServer) -> None:
        with locked.client() as client:
            refused = client.post("/v1/messages", json=HELLO)
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "authentication_error"
            assert refused.json()["request_id"] == refused.headers["request-id"]

    def test_page_and_health_are_open(self, locked: ScriptedServer) -> None:
        with locked.client() as client:
            for path in ("/", "/health", "/page/app.js", "/openapi.json"):
                assert client.get(path).status_code == 200


class TestLimits:
    def test_a_long_body(self, locked: ScriptedServer) -> None:
        body = json.dumps({**HELLO, "user": "x" * 3000}).encode()

        def pieces() -> Iterator[bytes]:
            yield body[:1500]
            yield body[1500:]

        headers = {"x-api-key": KEY, "content-type": "application/json"}
        with locked.client(headers=headers) as client:
            for content in (body, pieces()):  # announced, and not
                refused = client.post("/v1/chat/completions", content=content)
                assert refused.status_code == 413
                assert "2000 bytes" in refused.json()["error"]["message"]
            refused = client.post("/v1/messages", content=body)
            assert refused.json()["error"]["type"] == "request_too_large"

    @pytest.mark.parametrize(
        ("content", "kind", "said"),
        [
            (b"{", "application/json", "not JSON"),
            (b"[1]", "application/json", "wanted a JSON object"),
            (b"{}", "application/json", "messages: Field required"),
            (b'{"messages": []}', "text/plain", "Content-Type: application/json"),
            (b"[" * 900, "application/json", "not"),
            (
                b'{"messages":[{"role":"user","content":"\\ud800"}]}',
                "application/json",
                "half a character",
            ),
            (
                b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
                "application/json",
                "temperature",
            ),
        ],
    )
    def test_a_body_that_is_none(
        self, locked: ScriptedServer, content: bytes, kind: str, said: str
    ) -> None:
        headers = {"x-api-key": KEY, "content-type": kind}
        with locked.client() as client:
            refused = client.post("/v1/chat/completions", content=content, headers=headers)
        assert refused.status_code == 400
        assert said in refused.json()["error"]["message"]

    def test_unknown_paths_and_methods(self, unlocked: ScriptedServer) -> None:
        with unlocked.client() as client:
            missing = client.get("/v1/nothing")
            assert missing.status_code == 404
            assert "/v1/nothing" in missing.json()["error"]["message"]
            wrong = client.get("/v1/chat/completions")
            assert wrong.status_code == 405
            assert wrong.headers["allow"] == "POST"

    @pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
    def test_head_is_get_without_a_body(self, unlocked: ScriptedServer, path: str) -> None:
        """What `curl -I` asks first."""
        with unlocked.client() as client:
            head, got = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        same = ("content-type", "content-length")
        assert [head.headers[name] for name in same] == [got.headers[name] for name in same]


class TestNames:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("127.0.0.1:1234", 200),
            ("[::1]:8080", 200),
            ("rebound.example.com", 403),
            ("localhost.example.com:80", 403),
        ],
    )
    def test_without_a_key_only_this_machines_own(
        self, unlocked: ScriptedServer, host: str, status: int
    ) -> None:
        with unlocked.client() as client:
            assert client.get("/v1/models", headers={"host": host}).status_code == status

    def test_with_a_key_any(self, locked: ScriptedServer) -> None:
        headers = {"host": "my-server.example.com", "x-api-key": KEY}
        with locked.client() as client:
            assert client.get("/v1/models", headers=headers).status_code == 200

    def test_an_alias_is_answered_under_the_models_own_name(self, unlocked: ScriptedServer) -> None:
        with unlocked.client() as client:
            answer = client.post("/v1/chat/completions", json={**HELLO, "model": "gpt-4o"})
            assert answer.json()["model"] == "scripted"
            assert answer.json()["choices"][0]["message"]["content"] == "Hi."

    @pytest.mark.parametrize(
        ("host", "is_ours"),
        [
            ("127.0.0.1", True),
            ("127.8.9.1", True),
            ("::1", True),
            ("localhost", True),
            ("0.0.0.0", False),
            ("::", False),
            ("192.168.1.2", False),
            ("127.0.0.1.example.com", False),
        ],
    )
    def test_loopback(self, host: str, is_ours: bool) -> None:
        assert is_loopback(host) is is_ours


class TestOrigins:
    def ask(self, server: ScriptedServer, origin: str) -> dict[str, str]:
        asks = {"access-control-request-method": "POST", "origin": origin}
        with server.client() as client:
            return dict(client.options("/v1/chat/completions", headers=asks).headers)

    def test_none_by_default(self, unlocked: ScriptedServer) -> None:
        assert "access-control-allow-origin" not in self.ask(unlocked, "https://example.com")

    def test_those_that_were_named(self, locked: ScriptedServer) -> None:
        allowed = self.ask(locked, "https://example.com")
        assert allowed["access-control-allow-origin"] == "https://example.com"
        assert "access-control-allow-origin" not in self.ask(locked, "https://evil.example")
        # A refusal must be readable too, or the page sees no reason.
        with locked.client() as client:
            refused = client.get("/v1/models", headers={"origin": "https://example.com"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://example.com"


def test_metrics_count_what_happened(prompts: Prompts) -> None:
    with ScriptedServer(prompts, {"Hello": "Hi."}) as server, server.client() as client:
        answer = client.post("/v1/chat/completions", json=HELLO).json()
        client.post("/v1/chat/completions", json={})
        client.get("/somewhere")
        families = {
            family.name: family
            for family in text_string_to_metric_families(client.get("/metrics").text)
        }

        def value(name: str) -> float:
            return families[f"kandiga_{name}"].samples[0].value

        assert value("generated_tokens") == answer["usage"]["completion_tokens"]
        assert value("prompt_tokens") == answer["usage"]["prompt_tokens"]
        assert value("answers_finished") == 1
        # This engine has no keys and values; with a real one it is such as "f16" or "k4v3".
        assert families["kandiga_answers_by_kv"].samples[0].labels == {"kv": "none"}
        assert value("answers_by_kv") == 1
        assert client.get("/status").json()["engine"]["answers_by_kv"] == {"none": 1}
        assert value("resident_bytes") > 1_000_000
        seen = {
            (sample.labels["path"], sample.labels["status"]): sample.value
            for sample in families["kandiga_http_requests"].samples
            if sample.name.endswith("_total")
        }
        assert seen[("/v1/chat/completions", "200")] == 1
        assert seen[("/v1/chat/completions", "400")] == 1
        assert seen[("other", "404")] == 1
        first = families["kandiga_first_token_seconds"].samples
        assert next(one.value for one in first if one.name.endswith("_count")) == 1


@pytest.fixture(scope="module")
def endless(model: Path) -> dict[str, int]:
    """Return a bias under which an answer does not end before its limit."""
    return {str(token): -100 for token in Prompts(model).stop_token_ids}


def serve(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kandiga_run", "serve", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        env={**os.environ, **(env or {})},
        check=False,
    )


class TestCommand:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_other_machines_need_a_key(self, model: Path, host: str) -> None:
        result = serve(str(model), "--host", host)
        assert result.returncode == 1
        assert "KANDIGA_API_KEY" in result.stderr
        assert "--insecure" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_an_empty_key_and_a_wrong_origin(self, model: Path) -> None:
        assert serve(str(model), env={"KANDIGA_API_KEY": " "}).returncode == 2
        assert serve(str(model), "--cors-origin", "example.com").returncode == 2

    def test_a_port_in_use_is_one_line(self, unlocked: ScriptedServer) -> None:
        port = str(unlocked.socket.getsockname()[1])
        # Told before the model is looked for.
        result = serve("no-such-model", "--port", port)
        assert result.returncode == 1
        assert f"port {port} of 127.0.0.1: Address already in use" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_the_key_comes_from_the_environment(self, model: Path) -> None:
        env = {**os.environ, "KANDIGA_API_KEY": KEY}
        with ServerProcess(model, "--host", "0.0.0.0", env=env) as server:
            port = server.url.rpartition(":")[2]
            server.url = f"http://127.0.0.1:{port}"
            with server.client() as client:
                assert client.get("/v1/models").status_code == 401
                assert client.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
            assert server.stop(signal.SIGTERM) == 0

    def test_ctrl_c_lets_an_answer_finish(self, model: Path, endless: dict[str, int]) -> None:
        with ServerProcess(model) as server, server.client() as client:
            answers: list[dict[str, object]] = []

            def ask() -> None:
                body = {**HELLO, "max_tokens": 300, "logit_bias": endless}
                answers.append(client.post("/v1/chat/completions", json=body).json())

            asking = threading.Thread(target=ask)
            asking.start()
            with server.client() as watching:
                while watching.get("/status").json()["queue"]["running"] == 0:
                    time.sleep(0.01)
            assert server.stop(signal.SIGINT) == 130
            asking.join(START_SECONDS)
            assert answers[0]["usage"]["completion_tokens"] == 300  # type: ignore[index]
            assert server.lines[-1] == "kandiga-run: interrupted"

    def test_ctrl_c_gives_up_what_takes_too_long(
        self, model: Path, endless: dict[str, int]
    ) -> None:
        with ServerProcess(model, "--drain", "0") as server, server.client() as client:
            body = {**HELLO, "max_tokens": 1900, "stream": True, "logit_bias": endless}
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGINT)
                rest = list(lines)
            assert server.stop(signal.SIGINT) == 130
        assert any("shutting down" in line for line in rest)
