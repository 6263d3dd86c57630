"""The installed package, used in the clone it was made from, as the README has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from installed import ROOT, run
from server.server_process import ServerProcess

pytestmark = pytest.mark.slow


def test_the_page_comes_with_the_wheel(wheel_commands: Path, model: Path) -> None:
    command = (wheel_commands / "kandiga-run",)
    with (
        ServerProcess(model, program=command, cwd=ROOT) as server,
        server.client() as client,
    ):
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        parts = set(re.findall(r'(?:src|href)="(/?[^"#]+)"', page.text))
        assert parts
        assert all(client.get(f"/{part.lstrip('/')}").status_code == 200 for part in parts), parts
        assert client.get("/health").json()["status"] == "ok"


def test_bench_measures_with_the_installed_kernels(wheel_commands: Path, model: Path) -> None:
    """Its processes must not take the source that lies in the current folder for the package."""
    command = wheel_commands / "kandiga-run"
    options = ("--quick", "--no-ceilings", "--seconds", "1")
    done = run(command, "bench", model, *options, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "decode" in done.stdout


def test_python_in_the_clone_says_what_to_do(wheel_commands: Path) -> None:
    done = run(wheel_commands / "python", "-c", "import cython_kernels", cwd=ROOT)
    assert done.returncode == 1
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith("ImportError: cython_kernels: the kernels are not built in")
    assert "go to another folder" in last
