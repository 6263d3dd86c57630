"""The process in which an engine is measured: a request on stdin, events on stdout.

Each event is a line of JSON with a key "event". What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def _join_group(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))


def _die_with_parent() -> None:
    """Let the kernel end this process when the one that started it goes, whatever kills that."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal, sigkill = 1, 9
        ctypes.CDLL(None).prctl(set_parent_death_signal, sigkill)


def main() -> int:
    """Do what the request says; return an exit code of `kandiga-run`."""
    _die_with_parent()
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # numpy and the engine are imported by what follows, inside the group.
    from kandiga_run.bench.request import Request

    request = Request.from_json(sys.stdin.readline())
    if request.group_file is not None:
        _join_group(request.group_file)
    from kandiga_run.bench.measuring import measure
    from kandiga_run.terminal.failures import describe

    try:
        measure(request, events)
    except BaseException as error:
        known = describe(error)
        if known is None:
            traceback.print_exc()
        line, code = known or (f"internal error: {type(error).__name__}: {error}", 1)
        print(json.dumps({"event": "error", "line": line, "code": code}), file=events)
        return int(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
