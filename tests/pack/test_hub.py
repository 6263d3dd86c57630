"""A Hub id: the real client against a small server on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from checkpoints import make_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/tiny-mixtral"


class HubHandler(BaseHTTPRequestHandler):
    """The three requests snapshot_download makes: repository facts, file facts, file bytes."""

    def __init__(self, folder: Path, *args: object) -> None:
        self.folder = folder
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        facts = re.fullmatch(rf"/api/models/{REPOSITORY}(/revision/(main|{COMMIT}))?", path)
        tree = re.fullmatch(rf"/api/models/{REPOSITORY}/tree/{COMMIT}", path)
        file = re.fullmatch(rf"/{REPOSITORY}/resolve/{COMMIT}/([\w.-]+)", path)
        if facts:
            names = [{"rfilename": each.name} for each in sorted(self.folder.iterdir())]
            answer = {"id": REPOSITORY, "sha": COMMIT, "siblings": names, "private": False}
            self._send(json.dumps(answer).encode(), body=body)
        elif tree:
            entries = [
                {
                    "type": "file",
                    "path": each.name,
                    "size": each.stat().st_size,
                    "oid": hashlib.sha1(each.read_bytes()).hexdigest(),
                }
                for each in sorted(self.folder.iterdir())
            ]
            self._send(json.dumps(entries).encode(), body=body)
        elif file and (self.folder / file[1]).is_file():
            data = (self.folder / file[1]).read_bytes()
            self._send(data, body=body, digest=hashlib.sha256(data).hexdigest())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, *, body: bool, digest: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if digest:
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep pytest's output clean."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a Hub with one repository."""
    folder = make_checkpoint(tmp_path / "published", "mixtral", dtype="float16")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(HubHandler, folder))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run_command(hub: str, tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-m", "kandiga_pack", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_convert_from_the_hub(hub: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    done = run_command(hub, tmp_path, "convert", REPOSITORY, str(packed), "--json")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "hf").rglob("*.bin"))
    facts = json.loads(run_command(hub, tmp_path, "inspect", str(packed), "--json").stdout)
    assert facts["source"]["repository"] == REPOSITORY
    assert facts["source"]["revision"] == COMMIT
    weights = tmp_path / "published" / "model.safetensors"
    recorded = facts["source"]["files"]["model.safetensors"]
    assert recorded["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    pinned = ("verify", str(packed), "--against", REPOSITORY, "--revision", COMMIT)
    assert run_command(hub, tmp_path, *pinned).returncode == 0
    local = ("verify", str(packed), "--against", str(tmp_path / "published"))
    assert run_command(hub, tmp_path, *local).returncode == 0


def test_a_repository_that_is_not_there(hub: str, tmp_path: Path) -> None:
    done = run_command(hub, tmp_path, "convert", "someone/else", str(tmp_path / "packed"))
    assert done.returncode == 3
    assert done.stderr.startswith("kandiga-pack: someone/else: no such file or folder here, and")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "packed").exists()


def test_no_network(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"  # the discard port: nothing listens
    done = run_command(closed, tmp_path, "convert", REPOSITORY, str(tmp_path / "packed"))
    assert done.returncode == 3
    assert "the Hub cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
