"""Whether reading what will probably be wanted is worth the disk's time."""

from __future__ import annotations

from kandiga_run.engine.stats import RunStats

#: Experts read ahead for a layer. Two keep a disk of 3 GB/s busy while the mixer of a 35B model
#: computes (x86-64, 2 threads: it stood still for 34 % of a token, 15 % with guesses, most of it
#: during the head), the third while Python does the rest; from four on nothing more was gained.
MOST_GUESSED = 3
# A wrong guess costs as much as a right one gains, where the disk would not have stood still.
_LEAST_SHARE = 0.5
# Reads ahead after which the share is judged, and layers after which guessing is tried again.
_JUDGED_READS = 256
_PAUSE = 4096


class Guesses:
    """Watches how many reads ahead came to be used, and stops them while they are too few."""

    def __init__(self, stats: RunStats) -> None:
        self._stats = stats
        self._read = self._used = 0
        self._pause = 0

    def pay(self) -> bool:
        """Whether to guess for the layer in question."""
        if self._pause:
            self._pause -= 1
            return False
        stats = self._stats
        read = stats.experts_read_ahead - self._read
        if read >= _JUDGED_READS:
            used = stats.experts_read_ahead_used - self._used
            self._read, self._used = stats.experts_read_ahead, stats.experts_read_ahead_used
            if used < _LEAST_SHARE * read:
                self._pause = _PAUSE
        return not self._pause
