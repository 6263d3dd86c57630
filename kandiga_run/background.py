"""Work in a thread of its own, which somebody waits for or has no more need of."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Says that nobody needs the work any more.
GaveUp = Callable[[], bool]


def never() -> bool:
    """Return False: the work is needed."""
    return False


def unless(gave_up: GaveUp, job: Callable[[], None]) -> Callable[[], None]:
    """Return a job that does nothing once nobody needs it any more."""

    def run() -> None:
        if not gave_up():
            job()

    return run


class BackgroundJob:
    """Begins at once; what goes wrong is raised where somebody waits."""

    def __init__(self, name: str, work: Callable[[GaveUp], None]) -> None:
        """Start a thread called `name`.

        work: may end early once the function it is given says so.
        """
        self._work = work
        self._gave_up = threading.Event()
        self._outcome: BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name=name, daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the work is done; raise what went wrong, each time anew.

        After the first time it costs nothing.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._outcome is not None:
            raise self._outcome

    def close(self) -> None:
        """Give the work up, whatever became of it. Closing twice is harmless."""
        self._gave_up.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            self._work(self._gave_up.is_set)
        except BaseException as error:  # raised where somebody waits
            self._outcome = error
