"""Dense weights brought in by a thread, while whoever opened the model reads the tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Says that nobody needs the weights any more.
GaveUp = Callable[[], bool]


def never() -> bool:
    """Return False: the weights are needed."""
    return False


def unless(gave_up: GaveUp, job: Callable[[], None]) -> Callable[[], None]:
    """Return a job that does nothing once nobody needs the weights any more."""

    def run() -> None:
        if not gave_up():
            job()

    return run


class DenseArrival:
    """Runs `bring_in` at once; nothing may be computed before `wait` has returned."""

    def __init__(self, bring_in: Callable[[GaveUp], None]) -> None:
        """bring_in: may return early once the function it is given says so."""
        self._bring_in = bring_in
        self._gave_up = threading.Event()
        self._outcome: BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="dense-weights", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the weights are there; raise what went wrong, each time anew.

        After the first time it costs nothing.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._outcome is not None:
            raise self._outcome

    def close(self) -> None:
        """Stop bringing in, whatever became of it. Closing twice is harmless."""
        self._gave_up.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            self._bring_in(self._gave_up.is_set)
        except BaseException as error:  # raised where somebody waits
            self._outcome = error
