"""Who installed this package, and the command that brings it up to date."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "kandiga-kexp"


#: One step after the other, each in the words of its program.
Commands = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Installation:
    """installer: its name, for people. commands: none when nobody can tell; `reason` says why."""

    installer: str
    commands: Commands = ()
    reason: str = ""


def installation() -> Installation:
    """Return how this very package was installed. Nothing is contacted."""
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return Installation("nobody", (), "it runs from a folder that is not installed")
    return installation_of(found, Path(sys.prefix), sys.executable)


def source_folder() -> Path | None:
    """Return the folder this package was installed from, if that is still there."""
    try:
        source = _source(distribution(DISTRIBUTION))
    except PackageNotFoundError:
        return None
    return source.folder if source is not None and source.folder.is_dir() else None


def installation_of(found: Distribution, prefix: Path, python: str) -> Installation:
    """Return how a distribution in the environment `prefix` was installed.

    pipx, uv tool and Homebrew install with pip or uv into an environment of their own, so the
    place of the environment goes before what is written in the distribution.
    """
    source = _source(found)
    pull: Commands = ()
    if source is not None and (source.folder / ".git").exists():
        pull = (("git", "-C", str(source.folder), "pull", "--ff-only"),)
    if source is not None and source.is_editable:
        if not pull:
            return Installation("pip, editable", (), f"{source.folder} is no clone")
        return Installation("pip, editable", (*pull, _built_again(source.folder, prefix, python)))
    if "Cellar" in prefix.parts:
        return Installation("Homebrew", (("brew", "upgrade", DISTRIBUTION),))
    if (prefix / "pipx_metadata.json").is_file():
        return Installation("pipx", (*pull, ("pipx", "upgrade", DISTRIBUTION)))
    if (prefix / "uv-receipt.toml").is_file():
        return Installation("uv tool", (*pull, ("uv", "tool", "upgrade", DISTRIBUTION)))
    installer = (found.read_text("INSTALLER") or "").strip()
    if source is not None:  # a folder, an archive or a repository was given, not an index
        return _from_source(source, installer or "pip", pull, python)
    if installer == "conda" or ((prefix / "conda-meta").is_dir() and installer not in _KNOWN):
        return Installation("conda", (("conda", "update", "--prefix", str(prefix), DISTRIBUTION),))
    if installer in _KNOWN or not installer:
        command = (*_install_command(installer, python), "--upgrade", DISTRIBUTION)
        return Installation(installer or "pip", (command,))
    return Installation(installer, (), f"update it the way {installer} does")


def _built_again(folder: Path, prefix: Path, python: str) -> tuple[str, ...]:
    """Return what an editable clone needs after a pull.

    Kernels are built again when they are imported, but requirements may have changed.
    """
    if prefix == folder / ".venv":
        return ("make", "-C", str(folder), "env")
    install = (python, "-m", "pip", "install", "--no-build-isolation", "--editable")
    return (*install, str(folder))


def _from_source(source: _Source, installer: str, pull: Commands, python: str) -> Installation:
    """Return how to install once more what was no index's."""
    install = _install_command(installer, python)
    if source.repository:
        # Unless forced, the same version number counts as the same; then what it newly needs.
        force = ("--reinstall",) if installer == "uv" else ("--force-reinstall",)
        commands = (
            (*install, *force, "--no-deps", source.repository),
            (*install, source.repository),
        )
        return Installation(installer, commands)
    if installer not in _KNOWN or not (source.folder / "pyproject.toml").is_file():
        return Installation(installer, (), f"it came from {source.url}: install again from there")
    again = ("--reinstall-package", DISTRIBUTION) if installer == "uv" else ()
    return Installation(installer, (*pull, (*install, *again, str(source.folder))))


def _install_command(installer: str, python: str) -> tuple[str, ...]:
    if installer == "uv":
        return ("uv", "pip", "install", "--python", python)
    return (python, "-m", "pip", "install")


_KNOWN = ("pip", "uv")


@dataclass(frozen=True)
class _Source:
    url: str
    folder: Path
    is_editable: bool
    #: as pip takes it, such as git+https://..., empty for anything else
    repository: str


def _source(found: Distribution) -> _Source | None:
    """Return what direct_url.json says (PEP 610), None for a package from an index."""
    text = found.read_text("direct_url.json")
    if text is None:
        return None
    try:
        record = json.loads(text)
        url = str(record["url"])
        editable = bool(record.get("dir_info", {}).get("editable"))
        version = record.get("vcs_info", {})
        repository = f"{version['vcs']}+{url}" if version else ""
        if repository and version.get("requested_revision"):
            repository += f"@{version['requested_revision']}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return _Source(url, Path(url2pathname(urlsplit(url).path)), editable, repository)
