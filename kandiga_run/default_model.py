"""The model that commands take when none is named."""

from __future__ import annotations

import os
from pathlib import Path

from kandiga_run.errors import RunError
from kandiga_run.user_files import config_folder, read_json, write_json

_KEY = "default_model"
#: Goes before what is remembered, for one shell or one service.
VARIABLE = "KANDIGA_MODEL"


def config_file() -> Path:
    """Return the file that choices are remembered in."""
    return config_folder() / "config.json"


def default_model() -> str | None:
    """Return the path or Hub id that commands take without one, or None.

    RunError when the file that should say so is damaged.
    """
    if given := os.environ.get(VARIABLE):
        return given
    value = read_json(config_file()).get(_KEY)
    if value is not None and not isinstance(value, str):
        raise RunError(f"{config_file()}: {_KEY} is {value!r}, wanted a path or a Hub id")
    return value


def remember_default_model(model: str) -> None:
    """Have commands take `model` from here on; other choices in the file stay. Raises OSError."""
    write_json(config_file(), {**read_json(config_file()), _KEY: model})
