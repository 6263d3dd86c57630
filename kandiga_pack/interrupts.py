"""Signals that stop the program, raised as an exception where that does no harm."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from kandiga_pack.errors import Interrupted

# Between taking a lock and saying so, or the other way about: an exception there would leave the
# lock taken for good, and a thread that needs it waiting. `Condition.wait` itself is not among
# them: it has let go of its lock.
_LOCKING = frozenset({"__enter__", "__exit__", "_acquire_restore", "_release_save", "_is_owned"})
_LOCKING_FILE = threading.Condition.__enter__.__code__.co_filename
_AGAIN_SECONDS = 0.001


def interrupt_on(*signals: signal.Signals) -> None:
    """Raise Interrupted in the main thread for each of `signals`, unless it is ignored.

    nohup has SIGHUP ignored, and a shell without job control SIGINT of what runs in the background.
    SIGALRM is taken too: it brings a signal back that came at a bad moment. Raising that signal
    again would call the handler at once, from Python 3.12 on.
    """
    signal.signal(signal.SIGALRM, _interrupt)
    for each in signals:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _interrupt)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    while frame is not None and frame.f_code.co_filename == _interrupt.__code__.co_filename:
        frame = frame.f_back  # it came while an earlier one was looked at
    if frame is None or not _takes_a_lock(frame):
        raise Interrupted
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _takes_a_lock(frame: FrameType) -> bool:
    return frame.f_code.co_filename == _LOCKING_FILE and frame.f_code.co_name in _LOCKING
