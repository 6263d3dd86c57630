"""Completion in real shells, driven through a pseudo-terminal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

BIN = Path(sys.executable).parent
SHELLS = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config", "-i"],
}
REQUIRED = os.environ.get("KANDIGA_REQUIRE_SHELLS", "bash").split(",")


def script(shell: str) -> str:
    done = subprocess.run(
        [BIN / "kandiga-run", "completion", shell], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> pexpect.spawn:
    """A shell that has read the script."""
    name = request.param
    if shutil.which(name) is None:
        assert name not in REQUIRED, f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    path = tmp_path / "completion"
    path.write_text(script(name))
    (tmp_path / "a-model-of-mine").mkdir()
    child = pexpect.spawn(
        name,
        SHELLS[name],
        cwd=str(tmp_path),
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "},
        dimensions=(50, 200),
        timeout=60,
        encoding="utf-8",
    )
    if name == "zsh":
        child.sendline("autoload -U compinit && compinit -u")
    child.sendline(f"source {path}; echo rea''dy")
    child.expect("ready")
    yield child
    child.close(force=True)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("kandiga-run compl", "kandiga-run completion"),
        ("kandiga-run plan --no-sp", "kandiga-run plan --no-speed"),
        ("kandiga-run run --engine na", "kandiga-run run --engine native"),
        ("kandiga-pack insp", "kandiga-pack inspect"),
        ("kandiga-pack verify --lev", "kandiga-pack verify --level"),
    ],
)
def test_a_tab_completes(shell: pexpect.spawn, typed: str, completed: str) -> None:
    shell.send(f"{typed}\t")
    # Terminals redraw: what the tab adds is what must appear.
    shell.expect_exact(completed[len(typed) :])


def test_no_command_is_completed_from_a_wrong_word() -> None:
    environment = {
        **os.environ,
        "_KANDIGA_RUN_COMPLETE": "bash_complete",
        "COMP_WORDS": "kandiga-run nonsense --",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [BIN / "kandiga-run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert "--max-tokens" not in done.stdout
