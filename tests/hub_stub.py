"""A Hub on this machine: the part of its HTTP API that huggingface_hub uses, on loopback.

Repositories are created, files preuploaded (Git LFS, basic transfer), committed, listed and served
with ranges, redirections and the headers of the real one. Every request is in `requests`.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_token_of_this_test"
# Above this a file goes to LFS whatever its name; the real threshold is 10 MB.
LFS_BYTES = 1 << 20
# Above this a file stays on the disk and only ranges of it are served.
HUGE_BYTES = 1 << 28
LFS_SUFFIXES = (".kexp", ".safetensors")


@dataclass
class Request:
    """One request as it was answered. num_bytes: of the body sent (GET) or received (PUT)."""

    method: str
    path: str
    status: int
    num_bytes: int
    range: str | None = None


@dataclass
class Repository:
    """commits: hash -> {path: content}; head is what main stands at.

    Content is bytes, or the path of a file too large to hold.
    """

    private: bool = False
    commits: dict[str, dict[str, bytes | Path]] = field(default_factory=dict)
    head: str = ""

    def commit(self, files: Mapping[str, bytes | Path]) -> str:
        text = repr([(name, _git_blob_hash(data)) for name, data in sorted(files.items())])
        self.head = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[self.head] = dict(files)
        return self.head

    @property
    def files(self) -> dict[str, bytes | Path]:
        """What main holds."""
        return self.commits[self.head]


class HubStub:
    """The state of the server; `serve_hub` runs it.

    Attributes:
        allowed_puts: so many uploads succeed from here on, then they fail half-way; None for all.
        damage: path -> offset of a byte that is served wrong.
        latency_seconds: before each answer. ignores_ranges: every answer is the whole file.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes | Path] = {}
        self.requests: list[Request] = []
        self.url = ""
        self.allowed_puts: int | None = None
        self.damage: dict[str, int] = {}
        self.latency_seconds = 0.0
        self.ignores_ranges = False

    def add(self, name: str, folder: Path, *, private: bool = False) -> str:
        """Publish a folder at once; return the commit."""
        repository = self.repositories.setdefault(name, Repository(private))
        found = [each for each in folder.iterdir() if each.is_file()]
        return repository.commit(
            {each.name: each if _is_huge(each) else each.read_bytes() for each in found}
        )

    def sent_bytes(self, suffix: str = "") -> int:
        """Bytes of file content served so far from paths with this end."""
        return sum(
            each.num_bytes
            for each in self.requests
            if each.method == "GET" and each.status in (200, 206) and each.path.endswith(suffix)
            if "/resolve/" in each.path or each.path.startswith("/cdn/")
        )


@contextmanager
def serve_hub() -> Iterator[HubStub]:
    """Run a Hub without repositories."""
    hub = HubStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hub_environment(hub: HubStub | str, home: Path, *, token: bool = True) -> dict[str, str]:
    """Return the environment of a command that talks to `hub` and keeps its cache in `home`."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        environment.pop(name, None)
    if token:
        environment["HF_TOKEN"] = TOKEN
    return environment


def run_with_hub(
    hub: HubStub | str,
    home: Path,
    program: str,
    *arguments: str,
    token: bool = True,
    folder: Path | None = None,
    **variables: str,
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m program arguments` in `folder` against a Hub."""
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env=hub_environment(hub, home, token=token) | variables,
    )


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: HubStub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        """Keep pytest's output clean."""

    # -- routes

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        time.sleep(self.hub.latency_seconds)
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._facts(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/([0-9a-f]{64})/(.+)", path):
            assert "Authorization" not in self.headers
            self._send_file(self.hub.lfs[match[1]], match[2], {"ETag": f'"{match[1]}"'})
        else:
            self._refuse(404, "EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif not self._has_token():
            self._refuse(401, "RepoNotFound")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            self._preupload(match[1], json.loads(body))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._lfs_batch(json.loads(body))
        elif path == "/lfs-verify":
            self._send_json({} if json.loads(body)["oid"] in self.hub.lfs else {"error": "absent"})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], body)
        else:
            self._refuse(404, "EntryNotFound")

    def do_PUT(self) -> None:
        oid = urlsplit(self.path).path.rpartition("/")[2]
        length = int(self.headers["Content-Length"])
        if self.hub.allowed_puts is not None:
            if self.hub.allowed_puts == 0:
                self.rfile.read(length // 2)
                self._log(507, length // 2)
                self.send_response(507)  # not one that the client tries again
                self.send_header("Content-Length", "0")
                self.end_headers()
                self.close_connection = True
                return
            self.hub.allowed_puts -= 1
        data = self.rfile.read(length)
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.lfs[oid] = data
        self._log(200, length)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    # -- reading

    def _files(self, name: str, revision: str) -> dict[str, bytes | Path] | None:
        """Return what a revision holds, or refuse as the Hub does."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._has_token()):
            # The real one does not tell a stranger which private repositories exist.
            self._refuse(404 if self._has_token() else 401, "RepoNotFound")
            return None
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return None
        self.commit_hash = commit
        return repository.commits[commit]

    def _facts(self, name: str, revision: str) -> None:
        files = self._files(name, revision)
        if files is None:
            return
        self._send_json(
            {
                "_id": name,
                "id": name,
                "modelId": name,
                "sha": self.commit_hash,
                "private": self.hub.repositories[name].private,
                "siblings": [{"rfilename": each} for each in sorted(files)],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _tree(self, name: str, revision: str) -> None:
        files = self._files(name, revision)
        if files is None:
            return
        entries = []
        for path, data in sorted(files.items()):
            size = _size(data)
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size}
            entry["oid"] = _git_blob_hash(data)
            if _is_lfs(path, size):
                entry["lfs"] = {"oid": _sha256(data), "size": size, "pointerSize": 130}
            entries.append(entry)
        self._send_json(entries)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        files = self._files(name, revision)
        if files is None:
            return
        if path not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": self.commit_hash})
            return
        data = files[path]
        headers = {"X-Repo-Commit": self.commit_hash}
        if not _is_lfs(path, _size(data)):
            self._send_file(data, path, headers | {"ETag": f'"{_git_blob_hash(data)}"'})
            return
        sha256 = _sha256(data)
        self.hub.lfs[sha256] = data
        self._log(302, 0)
        self.send_response(302)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("X-Linked-ETag", f'"{sha256}"')
        self.send_header("X-Linked-Size", str(_size(data)))
        # Another host name, as a CDN has: the client must not send its token there.
        cdn = self.hub.url.replace("127.0.0.1", "localhost")
        self.send_header("Location", f"{cdn}/cdn/{sha256}/{path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, data: bytes | Path, path: str, headers: dict[str, str]) -> None:
        if path in self.hub.damage:
            assert isinstance(data, bytes)
            at = self.hub.damage[path]
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        status, total = 200, _size(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and not self.hub.ignores_ranges:
            first = int(wanted[1])
            last = min(int(wanted[2]) if wanted[2] else total - 1, total - 1)
            if first > last:
                self._refuse(416, "", {"Content-Range": f"bytes */{total}"})
                return
            status, data = 206, _slice(data, first, last + 1)
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{total}"}
        assert isinstance(data, bytes), "a whole file of this size is not served"
        self._send(status, data, headers | {"Accept-Ranges": "bytes"})

    # -- writing

    def _create(self, wanted: dict[str, Any]) -> None:
        name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
        exists = name in self.hub.repositories
        if not exists:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            repository = self.hub.repositories[name] = Repository(private)
            repository.commit({".gitattributes": b"*.kexp filter=lfs diff=lfs merge=lfs -text\n"})
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        self._send_json(answer, 409 if exists else 200)

    def _preupload(self, name: str, wanted: dict[str, Any]) -> None:
        files = self._files(name, "main")
        if files is None:
            return
        answers = []
        for each in wanted["files"]:
            there = files.get(each["path"])
            is_lfs = _is_lfs(each["path"], each["size"])
            answer = {
                "path": each["path"],
                "uploadMode": "lfs" if is_lfs else "regular",
                "shouldIgnore": False,
            }
            if there is not None:
                answer["oid"] = _sha256(there) if is_lfs else _git_blob_hash(there)
            answers.append(answer)
        self._send_json({"files": answers})

    def _lfs_batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for each in wanted["objects"]:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.lfs:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify"},
                }
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.files)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._send_json({"success": True, "commitUrl": url, "commitOid": commit})

    # -- answers

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {**(headers or {}), "X-Error-Code": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self._log(status, len(data))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _log(self, status: int, num_bytes: int) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(
            Request(self.command, path, status, num_bytes, self.headers.get("Range"))
        )


def _is_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_BYTES


def _is_huge(path: Path) -> bool:
    return path.stat().st_size > HUGE_BYTES


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _slice(data: bytes | Path, begin: int, end: int) -> bytes:
    if isinstance(data, bytes):
        return data[begin:end]
    with data.open("rb") as stream:
        stream.seek(begin)
        return stream.read(end - begin)


def _sha256(data: bytes | Path) -> str:
    """Return a digest; of a huge file something as good for telling it from others."""
    return hashlib.sha256(data if isinstance(data, bytes) else str(data).encode()).hexdigest()


def _git_blob_hash(data: bytes | Path) -> str:
    if isinstance(data, Path):
        return hashlib.sha1(str(data).encode()).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
