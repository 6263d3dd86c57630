"""What holds for every test, and the tiny models that most of them share."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from packed import PackedModels


def _stay(number: int, frame: object) -> None:
    """Ignore a signal, without the processes that tests start ignoring it too."""


# In a run in the background (`pytest &`, nohup) these are ignored, which child processes inherit:
# Ctrl-C could not be tested. A signal with a handler is back at its default in a child.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, _stay)

# What whoever runs the tests keeps in ~/.config, ~/.cache/kandiga and ~/.local must not matter.
_own_files = tempfile.TemporaryDirectory(prefix="kandiga-tests-")
for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
    os.environ[variable] = f"{_own_files.name}/{variable.lower()}"
os.environ.pop("KANDIGA_MODEL", None)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedModels:
    """Return a maker of packed checkpoints that makes each one once."""
    from packed import PackedModels  # here: it imports mlx-lm, which many files do without

    return PackedModels(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="session")
def wheel_commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the commands of an installed wheel."""
    from installed import install_wheel

    return install_wheel(tmp_path_factory.mktemp("wheel"))
