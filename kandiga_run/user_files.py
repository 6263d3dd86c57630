"""Where a user's own files are, as the XDG Base Directory Specification has it.

On macOS too: whoever sets XDG_CONFIG_HOME there means it, and `~/.config` is where other command
line programs keep theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from kandiga_run.errors import RunError

_NAME = "kandiga"


def config_folder() -> Path:
    """Return the folder of choices the user made; it may not exist."""
    return _folder("XDG_CONFIG_HOME", ".config")


def cache_folder() -> Path:
    """Return the folder of what can be found out again; it may not exist."""
    return _folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Return the folder of what programs remember by themselves; it may not exist."""
    return _folder("XDG_STATE_HOME", ".local/state")


def data_folder() -> Path:
    """Return the folder that models are packed into; it may not exist."""
    return _folder("XDG_DATA_HOME", ".local/share")


def _folder(variable: str, default: str) -> Path:
    given = os.environ.get(variable, "")
    # The specification wants a relative path to be ignored.
    base = Path(given) if os.path.isabs(given) else Path.home() / default
    return base / _NAME


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty when there is none. RunError when it is something else."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 text; remove the file or mend it") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not JSON ({error}); remove the file or mend it") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: wanted a JSON object; remove the file or mend it")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file as a whole or not at all, making its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
