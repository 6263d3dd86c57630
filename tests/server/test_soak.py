"""Many clients at once on a real model: nothing leaks, nothing is crossed, nothing differs."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.server_process import ServerProcess

NUM_REQUESTS = 200
NUM_CLIENTS = 8
#: of the requests, those whose client leaves after a few events
LEAVE_SHARE = 0.2
SEED = 6
#: What allocator and caches may still take after the first hundred requests. A leaked state of
#: this model and context is 1 MB: two hundred of them would show.
GROWTH_BYTES = 48 << 20

WORDS = ["router", "expert", "disk", "memory", "token", "layer", "paris", "oslo", "query", "answer"]


def prompts() -> list[str]:
    """Return 24 different questions, some of which begin alike and some of which are long."""
    choose = random.Random(SEED)
    return [
        " ".join(choose.choices(WORDS, k=choose.choice((3, 12, 60)))) + f" {index}?"
        for index in range(24)
    ]


def body_of(question: str, max_tokens: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }


class Client:
    """Asks for one of the questions, in one of four ways, or leaves in the middle."""

    def __init__(self, server: ServerProcess, expected: dict[tuple[str, int], str]) -> None:
        self.server, self.expected = server, expected
        self.wrong: list[str] = []
        self.counts = {"whole": 0, "stream": 0, "messages": 0, "left": 0}
        self._lock = threading.Lock()

    def ask(self, number: int) -> None:
        choose = random.Random(SEED + number)
        question, max_tokens = choose.choice(sorted(self.expected))
        ways = ("whole", "stream", "messages")
        way = "left" if choose.random() < LEAVE_SHARE else choose.choice(ways)
        body = body_of(question, max_tokens)
        with self.server.client() as client:
            text = getattr(self, f"_{way}")(client, body)
        wanted = self.expected[(question, max_tokens)]
        with self._lock:
            self.counts[way] += 1
            is_right = wanted.startswith(text) if way == "left" else text == wanted
            if not is_right:
                self.wrong.append(f"{way} {question!r}: {text!r} != {wanted!r}")

    def _whole(self, client: Any, body: dict[str, Any]) -> str:
        answer = client.post("/v1/chat/completions", json=body)
        return str(answer.json()["choices"][0]["message"]["content"])

    def _messages(self, client: Any, body: dict[str, Any]) -> str:
        model = client.get("/health").json()["model"]
        answer = client.post("/v1/messages", json={**body, "model": model}).json()
        return "".join(block["text"] for block in answer["content"])

    def _stream(self, client: Any, body: dict[str, Any], limit: int | None = None) -> str:
        text = ""
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as sent:
            for number, line in enumerate(sent.iter_lines()):
                if limit is not None and number > limit:
                    break
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        return text

    def _left(self, client: Any, body: dict[str, Any]) -> str:
        return self._stream(client, body, limit=len(body["messages"][0]["content"]) % 12)


def figures(server: ServerProcess) -> dict[str, int]:
    """Return what must not grow."""
    process = Path(f"/proc/{server.process.pid}")
    with server.client() as client:
        status = client.get("/status").json()
    return {
        "anonymous": status["memory"]["anonymous_bytes"],
        "kept": status["memory"]["prefix_cache_bytes"],
        "states": status["memory"]["state_bytes"],
        "running": status["queue"]["running"] + status["queue"]["waiting"],
        "threads": len(list((process / "task").iterdir())),
        "files": len(list((process / "fd").iterdir())),
    }


def settled(server: ServerProcess) -> dict[str, int]:
    """Return the figures once nothing runs any more."""
    deadline = time.monotonic() + 30
    while (now := figures(server))["running"]:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    return now


@pytest.mark.slow
def test_two_hundred_requests_of_eight_clients(model: Path) -> None:
    with ServerProcess(model, "--prefix-cache", "8MiB") as server:
        expected: dict[tuple[str, int], str] = {}
        with server.client() as client:
            for index, question in enumerate(prompts()):
                max_tokens = (4, 12, 40)[index % 3]
                answer = client.post("/v1/chat/completions", json=body_of(question, max_tokens))
                choice = answer.json()["choices"][0]
                expected[(question, max_tokens)] = choice["message"]["content"]
        assert len(set(expected.values())) > len(expected) // 2  # crossed answers would show
        clients = Client(server, expected)
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            list(pool.map(clients.ask, range(NUM_REQUESTS // 2)))
            middle = settled(server)
            list(pool.map(clients.ask, range(NUM_REQUESTS // 2, NUM_REQUESTS)))
        end = settled(server)
        assert clients.wrong == []
        assert min(clients.counts.values()) > NUM_REQUESTS // 10
        assert end["states"] == 0
        assert end["threads"] <= middle["threads"] + 1  # the pool for rendering may still fill
        assert end["files"] <= middle["files"] + 2
        assert end["kept"] <= 8 << 20
        assert end["anonymous"] - middle["anonymous"] < GROWTH_BYTES
        assert server.lines[1:] == []  # nothing was complained about
        assert server.process.poll() is None
