"""What holds for every test."""

import signal


def _stay(number: int, frame: object) -> None:
    """Ignore a signal, without the processes that tests start ignoring it too."""


# In a run in the background (`pytest &`, nohup) these are ignored, which child processes inherit:
# Ctrl-C could not be tested. A signal with a handler is back at its default in a child.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, _stay)
