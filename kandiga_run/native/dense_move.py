"""Dense weights beside mapped experts, moved to anonymous huge pages while the engine works.

What the page cache gives depends on how the file came into it, and on the machine below a virtual
one: a token of the first 12 layers of Qwen3.5-35B-A3B took 30.8 ms with dense weights in the page
cache and 24.7 with a copy (two threads, x86-64, Linux 6.18). Copying before the first token would
cost 0.6 to 1 s a GB, most of it the system's zeroing of pages, so one thread copies while the
caller loads a tokenizer or waits for its user, and the matrices follow between two calls.
"""

from __future__ import annotations

from contextlib import suppress

from formats import KexpError
from kandiga_run.background import BackgroundJob, GaveUp
from kandiga_run.container import Model
from kandiga_run.memory.use import available_bytes
from kandiga_run.native.dense_copy import DenseCopy
from kandiga_run.native.weights import Weights

# Of the memory that is available, for experts, dense weights and their copy.
_MOST_SHARE = 0.95


class DenseMove:
    """Copies the dense weights of a model once, in the background."""

    def __init__(self, model: Model, weights: Weights) -> None:
        self._model = model
        self._weights = weights
        self._copy: DenseCopy | None = None
        self._job: BackgroundJob | None = None
        self._is_filled = False
        #: whether the matrices read the copy
        self.is_taken = False

    def has_room(self) -> bool:
        """Whether memory holds the experts, the dense weights and their copy."""
        needed_bytes = self._model.expert_bytes + 2 * self._weights.nbytes
        return needed_bytes <= available_bytes() * _MOST_SHARE

    def start(self) -> None:
        """Begin to copy; everything was shown to the model's dense watch."""
        self._copy = DenseCopy(self._model)
        self._job = BackgroundJob("dense-copy", self._fill)

    def take(self) -> None:
        """Let the matrices read the copy if it is there. Not to be called while a kernel runs."""
        if self._copy is None or not self._is_filled:
            return
        for matrix, names in self._weights.matrices:
            matrix.move(*(self._copy.array(name) for name in names))
        self._copy = None  # the matrices hold its memory
        self.is_taken = True

    def wait(self) -> None:
        """Wait until `take` finds the copy, or there will be none."""
        if self._job is not None:
            self._job.wait()

    def close(self) -> None:
        """Stop copying; the model may be closed afterwards."""
        if self._job is not None:
            self._job.close()

    def _fill(self, gave_up: GaveUp) -> None:
        assert self._copy is not None
        names = [name for _, parts in self._weights.matrices for name in parts]
        # A file that went bad after it was brought in: whoever needs its pages says so.
        with suppress(KexpError, OSError):
            self._copy.fill_alone(names, gave_up)
            self._is_filled = not gave_up()
