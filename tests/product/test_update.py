"""`kandiga-run update`: the command that fits how this was installed, and nothing unasked."""

import json
import os
import subprocess
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from kandiga_command import kandiga_run
from kandiga_run.installer import DISTRIBUTION, installation_of

PYTHON = "/env/bin/python"


def installed(folder: Path, installer: str, direct_url: object = None) -> Distribution:
    """Return a distribution with the records that an installer leaves."""
    info = folder / "kandiga_kexp-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {DISTRIBUTION}\nVersion: 1.0\n")
    if installer:
        (info / "INSTALLER").write_text(f"{installer}\n")
    if direct_url is not None:
        (info / "direct_url.json").write_text(json.dumps(direct_url))
    return PathDistribution(info)


@pytest.mark.parametrize(
    ("installer", "mark", "wanted"),
    [
        ("pip", "", f"{PYTHON} -m pip install --upgrade {DISTRIBUTION}"),
        ("uv", "", f"uv pip install --python {PYTHON} --upgrade {DISTRIBUTION}"),
        ("pip", "pipx_metadata.json", f"pipx upgrade {DISTRIBUTION}"),
        ("uv", "uv-receipt.toml", f"uv tool upgrade {DISTRIBUTION}"),
        ("conda", "conda-meta/history", "conda update --prefix PREFIX kandiga-kexp"),
        ("pip", "conda-meta/history", f"{PYTHON} -m pip install --upgrade {DISTRIBUTION}"),
    ],
)
def test_by_installer(tmp_path: Path, installer: str, mark: str, wanted: str) -> None:
    if mark:
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).write_text("")
    here = installation_of(installed(tmp_path, installer), tmp_path, PYTHON)
    (command,) = here.commands
    assert " ".join(command) == wanted.replace("PREFIX", str(tmp_path))


def test_homebrew(tmp_path: Path) -> None:
    prefix = Path("/opt/homebrew/Cellar/kandiga-kexp/1.0/libexec")
    here = installation_of(installed(tmp_path, "pip"), prefix, PYTHON)
    assert here.commands == (("brew", "upgrade", DISTRIBUTION),)


def test_from_a_folder_or_an_archive(tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    (clone / ".git").mkdir(parents=True)
    url = clone.as_uri()
    editable = installed(tmp_path, "pip", {"url": url, "dir_info": {"editable": True}})
    pull = ("git", "-C", str(clone), "pull", "--ff-only")
    install = (PYTHON, "-m", "pip", "install", "--no-build-isolation", "--editable", str(clone))
    assert installation_of(editable, tmp_path, PYTHON).commands == (pull, install)
    # That of `make env` is brought up to date as it was made.
    here = installation_of(editable, clone / ".venv", PYTHON)
    assert here.commands == (pull, ("make", "-C", str(clone), "env"))
    (clone / ".git").rmdir()
    assert not installation_of(editable, tmp_path, PYTHON).commands
    (tmp_path / "other").mkdir()
    archive = installed(tmp_path / "other", "pip", {"url": "https://x/y.whl", "archive_info": {}})
    here = installation_of(archive, tmp_path, PYTHON)
    assert not here.commands
    assert "https://x/y.whl" in here.reason


@pytest.mark.parametrize(
    ("installer", "mark", "wanted"),
    [
        ("pip", "", f"{PYTHON} -m pip install CLONE"),
        ("uv", "", f"uv pip install --python {PYTHON} --reinstall-package {DISTRIBUTION} CLONE"),
        ("pip", "pipx_metadata.json", f"pipx upgrade {DISTRIBUTION}"),
        ("uv", "uv-receipt.toml", f"uv tool upgrade {DISTRIBUTION}"),
    ],
)
def test_pip_install_of_a_clone(tmp_path: Path, installer: str, mark: str, wanted: str) -> None:
    """As the README begins: the clone is pulled, and installed from once more."""
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    (clone / "pyproject.toml").write_text("")
    if mark:
        (tmp_path / mark).write_text("")
    found = installed(tmp_path, installer, {"url": clone.as_uri(), "dir_info": {}})
    pull, again = installation_of(found, tmp_path, PYTHON).commands
    assert pull == ("git", "-C", str(clone), "pull", "--ff-only")
    assert " ".join(again) == wanted.replace("CLONE", str(clone))
    (clone / ".git").rmdir()
    assert installation_of(found, tmp_path, PYTHON).commands == (again,)


def test_from_a_repository(tmp_path: Path) -> None:
    version = {"vcs": "git", "requested_revision": "main", "commit_id": "0" * 40}
    record = {"url": "https://x/kandiga.git", "vcs_info": version}
    here = installation_of(installed(tmp_path, "pip", record), tmp_path, PYTHON)
    source = "git+https://x/kandiga.git@main"
    # The version number may be the same: forced, and then what is newly required.
    assert here.commands == (
        (PYTHON, "-m", "pip", "install", "--force-reinstall", "--no-deps", source),
        (PYTHON, "-m", "pip", "install", source),
    )


@pytest.mark.parametrize(
    "record", ["[]", "{", '{"url": 3, "dir_info": []}', '{"url": "u", "vcs_info": 3}']
)
def test_a_damaged_record_is_none(tmp_path: Path, record: str) -> None:
    found = installed(tmp_path, "pip")
    (tmp_path / "kandiga_kexp-1.0.dist-info" / "direct_url.json").write_text(record)
    assert installation_of(found, tmp_path, PYTHON).installer == "pip"


def update(*arguments: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    search = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return kandiga_run("update", *arguments, PATH=search)


@pytest.fixture
def fake_git(tmp_path: Path) -> Path:
    """A git that writes down what it was asked, in front of the real one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 7\n')
    (folder / "git").chmod(0o755)
    return folder


def test_nothing_runs_unasked(fake_git: Path, tmp_path: Path) -> None:
    told = json.loads(update("--json", path=fake_git).stdout)
    if told["commands"][0][0] != "git":
        pytest.skip(f"not an editable installation but {told['installer']}")
    assert told["run"] is False
    shown = update("--quiet", path=fake_git)
    assert shown.stdout == " && ".join(" ".join(each) for each in told["commands"]) + "\n"
    assert shown.stderr == ""
    assert not (tmp_path / "asked").exists()
    # With --yes they run until one fails, whose exit code is ours.
    done = update("--yes", path=fake_git)
    assert done.returncode == 7
    assert "make" not in done.stderr
    assert (tmp_path / "asked").read_text() == " ".join(told["commands"][0][1:]) + "\n"
