"""`kandiga-run` as a user starts it: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

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
