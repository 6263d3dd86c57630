"""`kandiga-run` as a user starts it: a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# A process that hangs must fail its test; on a busy machine one may take many seconds.
TIMEOUT_SECONDS = 300
KANDIGA_RUN = (sys.executable, "-m", "kandiga_run")


def kandiga_run(
    *arguments: str | Path, text: str = "", **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end; standard input is `text`, `variables` join the environment."""
    return subprocess.run(
        [*KANDIGA_RUN, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, **variables},
    )


def ok(*arguments: str | Path, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command that ends well."""
    result = kandiga_run(*arguments, text=text)
    assert result.returncode == 0, result.stderr
    return result


def as_json(*arguments: str | Path, text: str = "") -> dict[str, Any]:
    """Run a command that ends well; return the object it prints."""
    result: dict[str, Any] = json.loads(ok(*arguments, "--json", text=text).stdout)
    return result
