"""Completion in real shells, driven through a pseudo-terminal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

BIN = Path(sys.executable).parent
SHELLS = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}
REQUIRED = os.environ.get("KANDIGA_REQUIRE_SHELLS", "bash").split(",")

CASES = [
    ("kandiga-run compl", "kandiga-run completion"),
    ("kandiga-run plan --no-sp", "kandiga-run plan --no-speed"),
    ("kandiga-run run --engine na", "kandiga-run run --engine native"),
    ("kandiga-run plan qwen3.5-12", "kandiga-run plan qwen3.5-122b-a10b"),
    ("kandiga-run chat a-mod", "kandiga-run chat a-model-of-mine"),
    ("kandiga-run doctor a-mod", "kandiga-run doctor a-model-of-mine"),
    ("kandiga-pack insp", "kandiga-pack inspect"),
    ("kandiga-pack verify --lev", "kandiga-pack verify --level"),
]


def require(shell: str) -> None:
    if shutil.which(shell) is None:
        assert shell not in REQUIRED, f"{shell} is not installed"
        pytest.skip(f"{shell} is not installed")


def environment() -> dict[str, str]:
    search = f"{BIN}:{os.environ['PATH']}"
    return {**os.environ, "PATH": search, "TERM": "dumb", "PS1": "$ "}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, to be completed as a file."""
    (tmp_path / "a-model-of-mine").mkdir()
    return tmp_path


def write_script(shell: str, folder: Path) -> Path:
    """Write what `kandiga-run completion` prints."""
    done = subprocess.run(
        [BIN / "kandiga-run", "completion", shell], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    path = folder / "script"
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes(shell: str, folder: Path) -> None:
    """One shell for all cases, as a user's is: a terminal's line is killed between them."""
    require(shell)
    script = write_script(shell, folder)
    child = pexpect.spawn(
        shell,
        SHELLS[shell],
        cwd=str(folder),
        env=environment(),
        dimensions=(50, 200),
        timeout=60,
        encoding="utf-8",
    )
    if shell == "zsh":
        child.sendline("autoload -U compinit && compinit -u")
    # The typed line is echoed: what is waited for must not stand in it.
    child.sendline(f"source {script}; echo rea''dy")
    child.expect("ready")
    for typed, completed in CASES:
        child.send(f"{typed}\t")
        child.expect_exact(completed[len(typed) :])
        child.send("\x03")
        child.expect_exact("$ " if shell == "bash" else "\n")
    child.close(force=True)


@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_fish_completes(typed: str, completed: str, folder: Path) -> None:
    require("fish")
    script = write_script("fish", folder)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete -C '{typed}'"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    offered = [line.split("\t")[0].rstrip("/") for line in done.stdout.splitlines()]
    assert completed.split()[-1] in offered, done.stderr


def test_no_command_is_completed_from_a_wrong_word() -> None:
    variables = {
        **os.environ,
        "_KANDIGA_RUN_COMPLETE": "bash_complete",
        "COMP_WORDS": "kandiga-run nonsense --",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [BIN / "kandiga-run"], env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert "--max-tokens" not in done.stdout
