"""Where `kandiga-pack` begins: while Python imports it, Ctrl-C is a line and not a traceback.

By itself at the top: what lies in a package is found only after the package was imported.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130


def pack() -> NoReturn:
    """Entry point of `kandiga-pack`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
    from kandiga_pack.cli import main

    main()


def _end(_number: int, _frame: FrameType | None) -> None:
    """End at once, for nothing was done; the program takes its signals itself when it is there."""
    os.write(2, b"kandiga-pack: interrupted\n")
    os._exit(_INTERRUPTED)
