"""Where both commands begin: while Python imports them, Ctrl-C is a line and not a traceback.

By itself at the top: what lies in a package is found only after the package was imported.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130


def pack() -> NoReturn:
    """Entry point of `kandiga-pack`."""
    _end_on_ctrl_c("kandiga-pack")
    from kandiga_pack.cli import main

    main()


def run() -> NoReturn:
    """Entry point of `kandiga-run`."""
    was = signal.getsignal(signal.SIGINT)
    _end_on_ctrl_c("kandiga-run")
    from kandiga_run.cli import main

    # It takes KeyboardInterrupt, which Python's own handler raises.
    signal.signal(signal.SIGINT, was)
    sys.exit(main())


def _end_on_ctrl_c(program: str) -> None:
    def end(_number: int, _frame: FrameType | None) -> None:
        """End at once, for nothing was done."""
        os.write(2, f"{program}: interrupted\n".encode())
        os._exit(_INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)
