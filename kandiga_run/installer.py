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


@dataclass(frozen=True)
class Installation:
    """installer: its name, for people. command: None when nobody can tell; `reason` says why."""

    installer: str
    command: tuple[str, ...] | None
    reason: str = ""


def installation() -> Installation:
    """Return how this very package was installed. Nothing is contacted."""
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return Installation("nobody", None, "it runs from a folder that is not installed")
    return installation_of(found, Path(sys.prefix), sys.executable)


def installation_of(found: Distribution, prefix: Path, python: str) -> Installation:
    """Return how a distribution in the environment `prefix` was installed.

    pipx, uv tool and Homebrew install with pip or uv into an environment of their own, so the
    place of the environment goes before what is written in the distribution.
    """
    source = _source(found)
    if source is not None and source.is_editable:
        if not (source.folder / ".git").exists():
            return Installation("pip, editable", None, f"{source.folder} is no clone")
        pull = ("git", "-C", str(source.folder), "pull", "--ff-only")
        return Installation("pip, editable", pull)
    if "Cellar" in prefix.parts:
        return Installation("Homebrew", ("brew", "upgrade", DISTRIBUTION))
    if (prefix / "pipx_metadata.json").is_file():
        return Installation("pipx", ("pipx", "upgrade", DISTRIBUTION))
    if (prefix / "uv-receipt.toml").is_file():
        return Installation("uv tool", ("uv", "tool", "upgrade", DISTRIBUTION))
    installer = (found.read_text("INSTALLER") or "").strip()
    if source is not None:  # a folder, an archive or a repository was given, not an index
        what = source.url
        return Installation(
            installer or "pip", None, f"it came from {what}: install again from there"
        )
    if installer == "conda" or ((prefix / "conda-meta").is_dir() and installer not in _KNOWN):
        return Installation("conda", ("conda", "update", "--prefix", str(prefix), DISTRIBUTION))
    if installer == "uv":
        options = ("--python", python, "--upgrade", DISTRIBUTION)
        return Installation("uv", ("uv", "pip", "install", *options))
    if installer in ("pip", ""):
        return Installation("pip", (python, "-m", "pip", "install", "--upgrade", DISTRIBUTION))
    return Installation(installer, None, f"update it the way {installer} does")


_KNOWN = ("pip", "uv")


@dataclass(frozen=True)
class _Source:
    url: str
    folder: Path
    is_editable: bool


def _source(found: Distribution) -> _Source | None:
    """Return what direct_url.json says (PEP 610), None for a package from an index."""
    text = found.read_text("direct_url.json")
    if text is None:
        return None
    try:
        record = json.loads(text)
        url = str(record["url"])
        editable = bool(record.get("dir_info", {}).get("editable"))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return _Source(url, Path(url2pathname(urlsplit(url).path)), editable)
